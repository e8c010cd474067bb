"""The approval gate inside the release flow: asks people, keeps what they said, judges it.

Where the run belongs to a deployment it is suspended: no process waits, so nothing is lost when a
worker or the machine goes, and the answer starts the flow again from the top, where the journal
leads it back to here. A run without a deployment (a flow called as a function) can only be paused.
"""

from __future__ import annotations

import logging
from typing import Any, Literal
from uuid import UUID

from prefect.exceptions import FlowPauseTimeout, Pause
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput, keyset_from_base_key, read_flow_run_input
from prefect.runtime import deployment
from pydantic import Field

from evals.verdict import Outcome, Verdict
from serving.errors import ServingError
from serving.records import ReleaseState
from tasks import news, waiting
from tasks.notices import findings_list, flow_run_id, release_links
from tasks.release import Release

_LOG = logging.getLogger("interlock.approving")
_POLL_S = 2


class Decision(RunInput):
    """A person's answer to the approval gate. No field has a default: an empty answer is no answer."""

    decision: Literal["approve", "reject"] = Field(
        title="Decision",
        description="reject ends the release; the version comes back only by a person, with a reason",
    )
    name: str = Field(title="Your name", min_length=1, pattern=r"\S", description="Kept in the trail")
    reason: str = Field(title="Reason", min_length=1, pattern=r"\S", description="Kept in the trail")


def ask_approval(release: Release) -> Verdict:
    """Ask until the answers suffice, or time is over, which is a no.

    Raises prefect's `Pause` when the run was suspended: the flow's process ends then, and the answer
    starts it again.
    """
    bench, policy = release.bench, release.bench.policy.approval
    if not policy.required:
        return Verdict(Outcome.PASS, "no approval required by the policy")
    since = _put_question(release)
    until = since + policy.timeout_s
    while True:
        release.check()
        verdict = waiting.judge(bench, release.row)
        if verdict.outcome is not Outcome.INCONCLUSIVE:
            return _told(release, verdict)
        # every answer is one pause of its own, and the same one for a run that died before it was kept
        key = f"approval-{len(waiting.answers_of(bench, release.row)) + 1}"
        left_s = until - bench.clock()
        if left_s <= 0:
            # Prefect took it in time; the flow may have come back for it only now
            late = _answer_given(key)
            if late is None:
                return _told(release, Verdict(Outcome.FAIL, waiting.overdue_reason(bench.policy)))
            _keep(release, late, key)
            continue
        words = waiting.waiting_words(release.row, verdict, since=since, until=until)
        release.progress({"doing": words, "since": since, "until": until})
        try:
            answer = _await_answer(_form(release, verdict), key=key, timeout_s=max(1, int(left_s)))
        except Pause:
            release.end(ReleaseState.WAITING, words)
            raise
        except FlowPauseTimeout:
            continue
        release.check()
        _keep(release, answer, key)


def _await_answer(form: Any, *, key: str, timeout_s: int) -> Any:
    """Prefect's answer; raises `Pause` where the process has to end first."""
    if deployment.id:
        return suspend_flow_run(wait_for_input=form, timeout=timeout_s, key=key)
    return pause_flow_run(wait_for_input=form, timeout=timeout_s, key=key, poll_interval=_POLL_S)


def _answer_given(key: str) -> Decision | None:
    """The answer that Prefect took to a question of this flow run, None where there is none."""
    run_id = flow_run_id()
    for base in (f"suspended-{key}", f"paused-{key}") if run_id else ():
        found = read_flow_run_input(keyset_from_base_key(base)["response"], flow_run_id=UUID(run_id))
        if found:
            return Decision.model_validate(found)
    return None


def _put_question(release: Release) -> float:
    """Note once a flow run that people were asked, and tell them. Returns when that was."""
    bench, row, run = release.bench, release.row, flow_run_id()
    registrants = bench.registry.registrants(bench.policy.model, release.version)
    is_new = bench.journal.record_once(
        bench.name,
        waiting.ASKED,
        since=0.0,
        unless={"release": (row.id,), "flow_run": (run,)},
        who=row.owner,
        now=bench.clock(),
        release_id=row.id,
        release=row.id,
        flow_run=run,
        registrants=registrants,
        approvers_min=bench.policy.approval.approvers_min,
    )
    lines = bench.journal.audit(bench.name, what=(waiting.ASKED,), since=row.started_at)
    since = next(line.time for line in lines if line.release_id == row.id and line.details["flow_run"] == run)
    if is_new:
        verdict = waiting.judge(bench, row)
        if verdict.outcome is Outcome.INCONCLUSIVE:
            news.asked_for_approval(bench, row, verdict, timeout_s=bench.policy.approval.timeout_s)
    return since


def _keep(release: Release, answer: Any, key: str) -> None:
    """Write an answer into the trail; the same one again changes nothing."""
    bench, row = release.bench, release.row
    bench.journal.record_once(
        bench.name,
        waiting.APPROVED if answer.decision == "approve" else waiting.REJECTED,
        since=0.0,
        unless={"answer": (f"{row.id} {flow_run_id()} {key}",)},
        who=answer.name,
        now=bench.clock(),
        release_id=row.id,
        reason=answer.reason,
        answer=f"{row.id} {flow_run_id()} {key}",
    )


def _told(release: Release, verdict: Verdict) -> Verdict:
    """Write who decided and why onto the MLflow run and the version. Informs only."""
    bench = release.bench
    words = verdict.reason
    release.trail.tag({"interlock.approval": words})
    try:
        bench.registry.tag(bench.policy.model, release.version, {f"interlock.{bench.name}.approval": words})
    except ServingError as error:
        _LOG.warning("not tagged: %s", error)
    if verdict.passed:
        news.approved(bench, release.row, words)
    return verdict


def _form(release: Release, verdict: Verdict) -> Any:
    """The form with all the evidence so far, in markdown."""
    row, bench = release.row, release.bench
    champion = f"version {row.champion}" if row.champion else "no champion yet"
    lines = [
        f"## Version {row.version} of {bench.policy.model} onto {bench.name}?",
        f"Release `{row.id}`, against {champion}. It {verdict.reason}.",
        release_links(release),
    ]
    for stage, stored in row.verdicts.items():
        found = Verdict.from_dict(stored)
        lines += [f"### {stage}: {found.outcome}", found.reason, findings_list(found.findings)]
    answers = waiting.answers_of(bench, row)
    if answers:
        lines += ["### Said so far"]
        lines += [f"- **{'yes' if one.is_yes else 'no'}**, {one.name}: {one.reason}" for one in answers]
    return Decision.with_initial_data(description="\n\n".join(line for line in lines if line))
