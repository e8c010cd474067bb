"""Follows one release run from outside: the journal for what it knows, Prefect for how the run ended.

Imports neither Prefect nor MLflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from configs.settings import Settings
from serving.errors import TransientError
from tasks.failures import ExitStatus
from tasks.rest import prefect_api
from tasks.status import release_history

_OVER = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})
_PATIENCE_S = 120.0


def follow(
    settings: Settings, endpoint: str, flow_run_url: str, *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[dict[str, Any]]:
    """Snapshots of a release run, one a second, the last one with `over` true.

    Each has `run_state` (the flow run's state name), `run_type`, `message`, `flow_run_url` and
    `release` (as `interlock history --json` shows it; None until the run has claimed it). A server
    that is being restarted is waited for, two minutes at most; then TransientError.
    """
    run_id = flow_run_url.rstrip("/").rpartition("/")[2]
    api = prefect_api(settings)
    silent_since: float | None = None
    while True:
        try:
            run = api.call("GET", f"/flow_runs/{run_id}")
            silent_since = None
        except TransientError:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > _PATIENCE_S:
                raise
            sleep(1)
            continue
        snapshot = _snapshot(settings, endpoint, flow_run_url, run)
        yield snapshot
        if snapshot["over"]:
            return
        sleep(1)


def outcome_status(snapshot: dict[str, Any]) -> ExitStatus:
    """The exit status that the last snapshot of a release run means."""
    if snapshot["run_type"] == "COMPLETED":
        return ExitStatus.DONE
    by_name = {"Rejected": ExitStatus.REJECTED, "Refused": ExitStatus.REFUSED}
    return by_name.get(snapshot["run_state"], ExitStatus.UNFINISHED)


def _snapshot(settings: Settings, endpoint: str, flow_run_url: str, run: dict[str, Any]) -> dict[str, Any]:
    state = run.get("state") or {}
    own = [row for row in release_history(settings, endpoint) if row["flow_run_url"] == flow_run_url]
    return {
        "endpoint": endpoint,
        "run_state": state.get("name") or "Scheduled",
        "run_type": state.get("type") or "SCHEDULED",
        "message": state.get("message") or "",
        "flow_run_url": flow_run_url,
        "over": state.get("type") in _OVER,
        "release": own[0] if own else None,
    }
