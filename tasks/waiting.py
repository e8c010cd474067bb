"""A release that waits for people: what they said, how they say it, and what ends the wait.

The answers are lines of the journal's trail, so they outlive every process and every Prefect run.
Imports neither Prefect nor MLflow: the terminal and the rescue use it too.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from configs.approval import Approval
from configs.policy import Policy
from configs.settings import Settings
from evals.approval import Answer, judge_answers
from evals.verdict import Verdict
from serving.errors import Refused, ServingError
from serving.records import ReleaseRow, ReleaseState, Stage
from tasks import transitions
from tasks.bench import Bench
from tasks.rest import prefect_api

_LOG = logging.getLogger("interlock.waiting")
ASKED, APPROVED, REJECTED = "approval asked", "approval: approve", "approval: reject"
_ACCEPTED = "ACCEPT"
_PAUSING_S, _PAUSING_POLL_S = 20.0, 0.5
_LINES_MAX = 1000


def answers_of(bench: Bench, release: ReleaseRow) -> list[Answer]:
    """What people said of a release, oldest first."""
    lines = bench.journal.audit(
        bench.name, what=(APPROVED, REJECTED), since=release.started_at, limit=_LINES_MAX
    )
    mine = [line for line in reversed(lines) if line.release_id == release.id]
    return [Answer(line.what == APPROVED, line.who, str(line.details["reason"])) for line in mine]


def judge(bench: Bench, release: ReleaseRow, *, also: tuple[Answer, ...] = ()) -> Verdict:
    """What the answers so far, and those in `also`, amount to. Needs the release to have been asked."""
    registrants = [str(name) for name in _asked(bench, release).get("registrants", ())]
    policy = _approval_of(release)
    answers = [*answers_of(bench, release), *also]
    return judge_answers(answers, registrants=registrants, approvers_min=policy.approvers_min)


def is_waiting(release: ReleaseRow) -> bool:
    """Whether people's answer is what a release waits for, suspended or in a process that is paused."""
    asks = release.state is ReleaseState.RUNNING and release.stage is Stage.APPROVE
    return release.state is ReleaseState.WAITING or asks


def is_overdue(release: ReleaseRow, now: float) -> bool:
    """Whether nobody answered in time."""
    return release.state is ReleaseState.WAITING and 0 < float(release.progress.get("until", 0)) <= now


def was_resumed(settings: Settings, release: ReleaseRow) -> bool:
    """Whether somebody answered in Prefect and the flow run is only on its way back to the question.

    Prefect takes no answer after the time-out, so this one came in time, however long the worker takes.
    """
    return _flow_run_state(settings, release).get("type") in ("SCHEDULED", "PENDING", "RUNNING")


def overdue_reason(policy: Policy) -> str:
    """Why a release was rejected that nobody answered for."""
    return f"nobody approved it within {policy.approval.timeout_s:g} s"


def answer(settings: Settings, endpoint: str, *, is_yes: bool, who: str, reason: str) -> str:
    """Give a person's answer to the release that waits. Returns what follows from it.

    Raises `Refused` where none waits, where this person's yes would not count, and where Prefect
    does not take the answer (its HTTP status says nothing: the body does).
    """
    bench = Bench.rescue(endpoint, settings)
    release = bench.journal.open_release(endpoint)
    if release is None or not is_waiting(release):
        found = f"{release.id} is {release.state} in stage {release.stage}" if release else "none is open"
        raise Refused(
            f"{endpoint}: no release waits for an approval ({found}). Next: interlock status {endpoint}"
        )
    before = judge(bench, release)
    after = judge(bench, release, also=(Answer(is_yes, who, reason),))
    if is_yes and after == before:
        raise Refused(f"{release.id}: {who} has said yes already; it still {after.reason}")
    policy = _approval_of(release)
    if is_yes and policy.approvers_min == 1 and not after.passed:
        raise Refused(f"{release.id}: {who} registered version {release.version}; it {after.reason}")
    body = {"decision": "approve" if is_yes else "reject", "name": who, "reason": reason}
    # Repeated: Prefect answers 503 while its database is locked, and takes one answer only.
    result = prefect_api(settings).call(
        "POST", f"/flow_runs/{release.flow_run_id}/resume", {"run_input": body}, repeatable=True
    )
    if result.get("status") != _ACCEPTED:
        said = (result.get("details") or {}).get("reason") or result
        raise Refused(
            f"{release.id}: Prefect did not take the answer ({said}). Next: interlock status {endpoint}; "
            f"where its flow run is over, interlock resume {endpoint} asks again"
        )
    if not is_yes:
        return f"{release.id}: rejected by {who}; it ends within seconds"
    goes_on = "it goes on within seconds" if after.passed else f"it {after.reason}"
    return f"{release.id}: approved by {who}; {goes_on}. Follow it: interlock status {endpoint} --watch"


def expire(bench: Bench, release: ReleaseRow, *, who: str) -> str:
    """Reject a release that nobody answered for in time. Returns what was done."""
    reason = overdue_reason(bench.policy)
    transitions.reject(bench, release, state=ReleaseState.REJECTED, who=who, reason=reason, at=bench.clock())
    end_flow_run(bench, release, name="Rejected", message=reason)
    return f"{release.id} was rejected: {reason}"


def refuse_second_run(settings: Settings, release: ReleaseRow, *, flow_run_id: str = "") -> None:
    """Raise `Refused` where a release waits in another flow run that can still be answered.

    A run that Prefect has lost or ended is no reason to wait: the release may be run again.
    """
    if release.state is not ReleaseState.WAITING or release.flow_run_id in ("", flow_run_id):
        return
    if _flow_run_state(settings, release).get("type") == "PAUSED":
        raise Refused(f"{release.id} {release.reason}")


def end_flow_run(bench: Bench, release: ReleaseRow, *, name: str, message: str) -> None:
    """End the flow run of a release that has ended while it waited. Informs only: nothing depends on it.

    A suspended run has no process, so its state is set. A paused one sleeps in a process: answering
    wakes it, it finds that the release is over, and ends itself.
    """
    if not release.flow_run_id:
        return
    try:
        waits = release.state is ReleaseState.WAITING or release.stage is Stage.APPROVE
        look = _settled_state if waits else _flow_run_state
        state = look(bench.settings, release)
        if state.get("type") != "PAUSED":
            return
        api, path = prefect_api(bench.settings), f"/flow_runs/{release.flow_run_id}"
        if (state.get("state_details") or {}).get("pause_reschedule"):
            kind = "FAILED" if name == "Rejected" else "CANCELLED"
            ended = {"type": kind, "name": name, "message": message}
            api.call("POST", f"{path}/set_state", {"state": ended, "force": True}, repeatable=True)
        else:
            body = {"decision": "reject", "name": "interlock", "reason": message}
            api.call("POST", f"{path}/resume", {"run_input": body}, repeatable=True)
    except ServingError as error:
        _LOG.warning("the flow run of %s still waits: %s", release.id, error)


def waiting_words(release: ReleaseRow, verdict: Verdict, *, since: float, until: float) -> str:
    """For whom it waits, since when, until when, and the command that answers."""
    name = release.endpoint
    return (
        f"{verdict.reason}; asked {_moment(since)}, rejected without an answer by {_moment(until)}. "
        f'Next: interlock approve {name} --reason "...", or interlock reject {name} --reason "..."'
    )


def _approval_of(release: ReleaseRow) -> Approval:
    """How the release's policy has people asked, whatever else of it is refused by now."""
    return Approval.model_validate(release.policy.get("approval", {}), extra="ignore")


def _asked(bench: Bench, release: ReleaseRow) -> dict[str, Any]:
    """The newest question of a release, as it was put."""
    lines = bench.journal.audit(bench.name, what=(ASKED,), since=release.started_at, limit=_LINES_MAX)
    return next((dict(line.details) for line in lines if line.release_id == release.id), {})


def _settled_state(settings: Settings, release: ReleaseRow) -> dict[str, Any]:
    """The flow run's state, given a while to become Paused: the journal says WAITING a moment before."""
    until = time.monotonic() + _PAUSING_S
    while True:
        state = _flow_run_state(settings, release)
        if state.get("type") != "RUNNING" or time.monotonic() > until:
            return state
        time.sleep(_PAUSING_POLL_S)


def _flow_run_state(settings: Settings, release: ReleaseRow) -> dict[str, Any]:
    run = prefect_api(settings).call("GET", f"/flow_runs/{release.flow_run_id}", missing_ok=True) or {}
    return run.get("state") or {}


def _moment(seconds_since_epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds_since_epoch))
