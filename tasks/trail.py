"""The trail of a release: its MLflow run and what Prefect shows of it.

The journal is the truth; this is its copy for people. So nothing here may stop a release: what
cannot be written now is kept (bounded) and written later, and what could not be written at all
is said in the log.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

from serving.errors import ServingError
from serving.records import ReleaseRow
from tasks.registry import Registry

_LOG = logging.getLogger("interlock.trail")
_POINTS_MAX = 50_000
_FLUSH_EVERY_S = 5.0


class Trail:
    """Numbers over time and documents of one release, sent to its MLflow run when it answers."""

    def __init__(self, registry: Registry, run_id: str) -> None:
        self._registry = registry
        self._points: deque[tuple[str, float, int, int]] = deque(maxlen=_POINTS_MAX)
        self._flushed_at = 0.0
        self.run_id = run_id

    def numbers(self, values: Mapping[str, float], *, now: float, step: int) -> None:
        """Add one look's numbers; they are sent every few seconds, together."""
        for name, value in values.items():
            if value == value and abs(value) != float("inf"):
                self._points.append((name, float(value), int(now * 1000), step))
        if now - self._flushed_at >= _FLUSH_EVERY_S:
            self.flush(now=now)

    def flush(self, *, now: float) -> None:
        """Send what is kept. On failure it stays kept."""
        self._flushed_at = now
        points = list(self._points)
        if not points or not self.run_id:
            return
        try:
            self._registry.log_points(self.run_id, points)
        except ServingError as error:
            _LOG.warning("metrics kept for later: %s", error)
            return
        for _ in points:
            self._points.popleft()

    def document(self, name: str, text: str) -> None:
        """Store a document with the run; a failure is logged, not raised."""
        if not self.run_id:
            return
        try:
            self._registry.log_text(self.run_id, name, text)
        except ServingError as error:
            _LOG.warning("%s was not stored: %s", name, error)

    def close(self, release: ReleaseRow, *, now: float) -> None:
        """End the run with the release's outcome."""
        self.flush(now=now)
        if not self.run_id:
            return
        status = {"PROMOTED": "FINISHED", "REJECTED": "FAILED", "ROLLED_BACK": "FAILED"}.get(release.state, "KILLED")
        tags = {
            "interlock.outcome": release.state.lower(),
            "interlock.decided_stage": release.decided_stage,
            "interlock.reason": release.reason,
        }
        try:
            self._registry.close_run(self.run_id, status=status, tags=tags)
        except ServingError as error:
            _LOG.warning("the run %s was not closed: %s", self.run_id, error)


def plain_json(value: Any) -> str:
    """Readable JSON of plain values, with what JSON does not know as text."""
    return json.dumps(value, indent=2, default=str, sort_keys=False) + "\n"
