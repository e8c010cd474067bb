"""The trail of a release: its MLflow run and what Prefect shows of it.

The journal is the truth; this is its copy for people. So nothing here may stop or slow a
release: it is written from a thread of its own, what cannot be written now is kept (bounded)
and written later, and what could not be written at all is said in the log.
"""

from __future__ import annotations

import contextvars
import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from serving.errors import ServingError
from serving.records import ReleaseRow
from tasks.runs import Runs

_LOG = logging.getLogger("interlock.trail")
_POINTS_MAX = 50_000
_FLUSH_EVERY_S = 5.0
DIFFERENCES = "shadow_differences.html"
"""The document of a release that shows texts of users; retention deletes it with the reports."""
REPORT = "report.html"
_STATUS = {"PROMOTED": "FINISHED", "REJECTED": "FAILED", "ROLLED_BACK": "FAILED"}


class Aside:
    """Runs what only informs people, one at a time, away from the release's own thread.

    While one call is still running, newer ones of `offer` are skipped: the next look offers again.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._last: Future[None] | None = None

    def offer(self, what: Callable[[], None]) -> None:
        """Run it soon, unless the one before is still running."""
        if self._last is None or self._last.done():
            # The copied context lets Prefect's calls know their flow run.
            self._last = self._pool.submit(contextvars.copy_context().run, _quietly, what)

    def finish(self, timeout_s: float) -> None:
        """Wait for the last one, a bounded time."""
        if self._last is not None:
            try:
                self._last.result(timeout=timeout_s)
            except TimeoutError:
                _LOG.warning("gave up waiting %.0f s for a report to be written", timeout_s)
        self._pool.shutdown(wait=False, cancel_futures=True)


class Trail:
    """Numbers over time and documents of one release, sent to its MLflow run when it answers."""

    def __init__(self, runs: Runs, run_id: str) -> None:
        self._runs = runs
        self._points: deque[tuple[str, float, int, int]] = deque(maxlen=_POINTS_MAX)
        self._flushed_at = 0.0
        self._aside = Aside("trail")
        self.run_id = run_id

    def numbers(self, values: Mapping[str, float], *, now: float, step: int) -> None:
        """Add one look's numbers; they are sent every few seconds, together."""
        for name, value in values.items():
            if value == value and abs(value) != float("inf"):
                self._points.append((name, float(value), int(now * 1000), step))
        if now - self._flushed_at >= _FLUSH_EVERY_S:
            self._flushed_at = now
            self._aside.offer(self._flush)

    def document(self, name: str, text: str) -> None:
        """Store a document with the run; a failure is logged, not raised."""
        if self.run_id:
            _quietly(lambda: self._runs.log_text(self.run_id, name, text))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; a failure is logged, not raised."""
        if self.run_id:
            _quietly(lambda: self._runs.tag_run(self.run_id, tags))

    def close(self, release: ReleaseRow) -> None:
        """Send what is left and end the run with the release's outcome."""
        self._aside.finish(timeout_s=30)
        _quietly(self._flush)
        if not self.run_id:
            return
        tags = {
            "interlock.outcome": release.state.lower(),
            "interlock.decided_stage": release.decided_stage,
            "interlock.reason": release.reason,
        }
        status = _STATUS.get(release.state, "KILLED")
        _quietly(lambda: self._runs.close_run(self.run_id, status=status, tags=tags))

    def _flush(self) -> None:
        points = list(self._points)
        if not points or not self.run_id:
            return
        self._runs.log_points(self.run_id, points)
        for _ in points:
            self._points.popleft()


def _quietly(what: Callable[[], None]) -> None:
    try:
        what()
    except ServingError as error:
        _LOG.warning("not written: %s", error)
    except Exception:  # noqa: BLE001 (a report for people must never end a release)
        _LOG.warning("not written", exc_info=True)


def plain_json(value: Any) -> str:
    """Readable JSON of plain values, with what JSON does not know as text."""
    return json.dumps(value, indent=2, default=str, sort_keys=False) + "\n"
