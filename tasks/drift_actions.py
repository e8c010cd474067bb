"""What follows from a judged window: traffic first, then people, then the requests, then documents.

Everything here can be repeated for the same window: a hold holds, an alert is told once, the
event's id follows from endpoint and window, documents and metrics replace themselves.
"""

from __future__ import annotations

import logging
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals.drift import Check, Question
from evals.drift_decision import Action
from evals.verdict import Outcome
from serving.errors import Fenced, Refused, ServingError, TransientError
from serving.records import ReleaseState
from tasks import rolling_back
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.drift import DriftWindow, due_window, look_at_window, newest_window, policy_of, remember
from tasks.rest import prefect_api
from tasks.trail import plain_json

_LOG = logging.getLogger("interlock.drift")
RETRAIN_EVENT = "interlock.retrain.requested"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, RETRAIN_EVENT)
_BY_ITSELF = (Action.ROLL_BACK, Action.HOLD, Action.RETRAIN)
_WHO = "drift"
_RUN = "drift"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-. /]")


@dataclass(frozen=True, slots=True)
class DriftReport:
    """A judged window with what was done about it, in words, and where to see it."""

    window: DriftWindow
    done: tuple[str, ...]
    mlflow_url: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.window.as_dict(), "done": list(self.done), "mlflow_url": self.mlflow_url}


def check_drift(bench: Bench, *, again: bool = False) -> DriftReport | None:
    """Judge the newest whole window and do what follows; None where it was judged before.

    `again` judges it once more, for a person who wants to see it now.
    """
    ends_at = newest_window(policy_of(bench), bench.clock()) if again else due_window(bench)
    if ends_at is None:
        return None
    window = look_at_window(bench, ends_at)
    done = act(bench, window)
    remember(bench, window, who=_WHO)
    return DriftReport(window, tuple(done), publish(bench, window))


def act(bench: Bench, window: DriftWindow) -> list[str]:
    """Do what the decision says. Returns what was done, in words.

    With `drift.actions` off nothing is done by itself; people are told all the same.
    """
    actions = window.verdict.decision.actions
    done: list[str] = []
    if not policy_of(bench).actions:
        if left_out := [action for action in _BY_ITSELF if action in actions]:
            done.append(f"drift.actions is off; it would have been: {', '.join(left_out)}")
        actions = tuple(action for action in actions if action not in _BY_ITSELF)
    if Action.ROLL_BACK in actions:
        done.append(_roll_back(bench, window))
    if Action.HOLD in actions:
        done.append(_hold(bench, window))
    if Action.ALERT in actions:
        _tell(bench, window, done)
        done.append("alerted")
    if Action.RETRAIN in actions:
        done.append(_ask_for_retraining(bench, window))
    return [line for line in done if line]


def publish(bench: Bench, window: DriftWindow) -> str:
    """Evidently's page, the verdict and the scores over time in MLflow. Returns the run's page.

    Informs people: where MLflow is away it is said in the log, and the window stays judged.
    """
    runs, when = bench.runs, datetime.fromtimestamp(window.ends_at, UTC).strftime("%Y-%m-%dT%H-%M")
    try:
        run_id = runs.open_run(bench.name, f"{bench.name}-{_RUN}", {"interlock.kind": _RUN})
        step = int(window.ends_at // (window.ends_at - window.starts_at))
        points = [(name, value, int(window.ends_at * 1000), step) for name, value in _scores(window)]
        runs.log_points(run_id, points)
        runs.log_text(run_id, f"drift/{when}/verdict.json", plain_json(window.as_dict()))
        if window.page:
            with tempfile.TemporaryDirectory(prefix="interlock-drift-") as folder:
                path = Path(folder) / "report.html"
                path.write_text(window.page)
                runs.log_file(run_id, path, f"drift/{when}")
        return runs.run_url(run_id)
    except ServingError as error:
        _LOG.warning("%s: the drift report of %s was not written: %s", bench.name, when, error)
        return ""


def _scores(window: DriftWindow) -> Iterator[tuple[str, float]]:
    """Metrics of a window: every distance and excess share, under a name that MLflow takes."""
    yield "drift/rows", float(window.verdict.rows)
    if window.verdict.outcome is Outcome.INCONCLUSIVE:
        return
    yield "drift/flagged", float(len(window.verdict.flagged))
    yield "drift/alarms", float(len(window.verdict.alarms))
    for check in window.verdict.checks:
        yield _NOT_IN_NAMES.sub("_", f"drift/{check.key}")[:250], check.effect


def _roll_back(bench: Bench, window: DriftWindow) -> str:
    try:
        report = rolling_back.roll_back(bench, who=_WHO, reason=window.verdict.reason, serving=window.version)
    except (Refused, Fenced, TransientError) as error:
        return f"the rollback did not happen: {error}"
    return f"rolled back: {report.message}"


def _hold(bench: Bench, window: DriftWindow) -> str:
    """Pause the ramp at its share; it stays watched, and a person lets it go on."""
    release = bench.journal.open_release(bench.name)
    if release is None or release.state is not ReleaseState.RUNNING or release.request == "abort":
        return "" if release is None else f"{release.id} is {release.state}: there is no ramp to hold"
    if release.request == "pause":
        return f"{release.id} is held already"
    bench.journal.ask(release.id, "pause")
    bench.journal.record(
        bench.name,
        "held for drift",
        who=_WHO,
        now=bench.clock(),
        release_id=release.id,
        reason=window.verdict.reason[:500],
    )
    return f"{release.id} holds at its present share; interlock resume {bench.name} lets it go on"


def _ask_for_retraining(bench: Bench, window: DriftWindow) -> str:
    """The event that a training deployment subscribes to: once a window, however often this runs."""
    body = retrain_event(bench, window)
    prefect_api(bench.settings).call("POST", "/events", [body], repeatable=True)
    return f"asked for retraining (event {RETRAIN_EVENT})"


def retrain_event(bench: Bench, window: DriftWindow) -> dict[str, Any]:
    """The event's body. Its id follows from endpoint and window: Prefect counts it once."""
    return {
        "id": str(uuid.uuid5(_NAMESPACE, f"{bench.name}/{window.ends_at}")),
        "occurred": datetime.fromtimestamp(bench.clock(), UTC).isoformat(),
        "event": RETRAIN_EVENT,
        "resource": {
            "prefect.resource.id": f"interlock.endpoint.{bench.name}",
            "prefect.resource.name": bench.name,
        },
        "related": [],
        "payload": {
            "endpoint": bench.name,
            "model": bench.policy.model,
            "version": window.version,
            "window_from": datetime.fromtimestamp(window.starts_at, UTC).isoformat(),
            "window_until": datetime.fromtimestamp(window.ends_at, UTC).isoformat(),
            "reason": window.verdict.reason[:2000],
            "columns": sorted({check.column for check in window.verdict.alarms}),
        },
    }


def _tell(bench: Bench, window: DriftWindow, done: list[str]) -> None:
    verdict = window.verdict
    critical = Action.ROLL_BACK in verdict.decision.actions or any(
        check.question in (Question.SCHEMA, Question.REFUSED, Question.NULLS) for check in verdict.alarms
    )
    said = "".join(f". {line}" for line in done if line)
    alert(
        bench,
        "critical" if critical or verdict.decision.row.startswith("harm") else "warning",
        f"{verdict.decision.row}, version {window.version}: {verdict.reason}{said}",
        numbers={check.key: check.effect for check in verdict.alarms[:8]} | {"rows": verdict.rows},
        next_step=verdict.decision.next_step or f"interlock status {bench.name}",
        key=f"drift-{verdict.decision.row}",
    )


def table_rows(checks: tuple[Check, ...]) -> list[dict[str, Any]]:
    """The checks as plain rows for a table, the flagged ones first."""
    ordered = sorted(checks, key=lambda check: (not check.flagged, -check.effect / (check.threshold or 1e-9)))
    return [
        {
            "flagged": "yes" if check.flagged else "",
            "question": check.question.value,
            "column": check.column,
            "slice": check.part,
            "measured": check.method,
            "value": round(check.effect, 4),
            "threshold": check.threshold,
            "p": "" if check.p_value is None else f"{check.p_value:.2g}",
            "rows": check.rows,
        }
        for check in ordered
    ]
