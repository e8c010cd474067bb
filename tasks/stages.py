"""The stages of a release as Prefect tasks: each one effect or one question, safe to repeat.

Only `TransientError` is retried. A verdict that is not a PASS is an answer, not an exception;
exceptions become `Stopped`, which says under which name the flow run ends.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.environments import STAGING
from configs.settings import Settings
from evals.verdict import Verdict
from serving.errors import Fenced, Refused, ServingError, TransientError
from serving.records import EndpointRow, ReleaseState, Stage
from serving.versions import Pair
from tasks import notices, rolling_back, transitions, waiting
from tasks.approving import ask_approval
from tasks.bench import Bench
from tasks.changes import PROMOTE
from tasks.costing import cost_numbers, release_cost
from tasks.documents import write_documents
from tasks.evaluation import evaluate_candidate
from tasks.guard_schedule import stand_guard
from tasks.model_api import ModelApiError
from tasks.prompt_registry import subject
from tasks.ramp import run_canary
from tasks.release import Aborted, Release, open_release
from tasks.shadowing import run_shadow
from tasks.staging import run_staging, with_measured_limit

__all__ = ["Ended", "Release", "Stopped", "Verdict"]

_LOG = logging.getLogger("interlock.stages")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a flow run ends: the name of its final state, and why."""

    name: str
    message: str


class Stopped(Exception):
    """A release that cannot go on in this run; `name` becomes the state's name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    @classmethod
    def by(cls, error: Exception) -> Stopped:
        """What an error means for the run."""
        if isinstance(error, Stopped):
            return error
        if isinstance(error, Aborted):
            return cls("Aborted", str(error))
        if isinstance(error, Refused):
            return cls("Refused", str(error))
        known = isinstance(error, ServingError)
        if not known:
            _LOG.error("unexpected error", exc_info=error)
        return cls("Interrupted", str(error) if known else f"{error.__class__.__name__}: {error}")


def _transient(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failed task is worth trying again."""
    try:
        state.result()
    except TransientError:
        return True
    except BaseException:  # noqa: BLE001 (anything else is not transient)
        return False
    return False


_RETRIED: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 3,
    "retry_delay_seconds": [1, 3, 9],
    "retry_condition_fn": _transient,
}


def asked_version(model: int, prompt: int) -> str:
    """What a flow run was asked to release: `3`, `3+p2`, or `p2` where the model stays."""
    return str(Pair(str(model or ""), str(prompt or "")))


def claim(endpoint: str, version: str, *, again: bool, reason: str) -> Release:
    """Become the owner of the release, or raise `Stopped` where that is refused."""
    try:
        # Made once: a retried claim must know its own.
        claimed = _claim(endpoint, version, again, reason, f"flow-{uuid.uuid4().hex[:12]}")
    except Exception as error:
        raise Stopped.by(error) from error
    if isinstance(claimed, Stopped):
        raise claimed
    return claimed


@task(name="claim", **_RETRIED)
def _claim(endpoint: str, version: str, again: bool, reason: str, owner: str) -> Release | Stopped:
    """A refusal is an answer, returned: raised, Prefect would log it as a stack trace."""
    bench = Bench.open(endpoint)
    pending = bench.row().intent
    row = transitions.finish(bench) if pending is not None else bench.row()
    try:
        prompt = bench.policy.prompt.name if bench.policy.prompt else None
        version = subject(
            bench.registry, model=bench.policy.model, prompt=prompt, asked=version, champion=row.champion
        )
    except Refused as refused:
        return Stopped.by(refused)
    if pending is not None and pending["kind"] == PROMOTE and row.champion == version:
        return Stopped("Promoted", f"an earlier run had decided it: {pending['reason']}")
    notices.free_dead_owner(bench)
    waits = bench.journal.open_release(endpoint)
    try:
        if waits is not None:
            waiting.refuse_second_run(bench.settings, waits, flow_run_id=notices.flow_run_id())
        release = open_release(
            bench, version, again=again, reason=reason, flow_run_id=notices.flow_run_id(), owner=owner
        )
    except Refused as refused:
        return Stopped.by(refused)
    return release


@task(name="open the run", **_RETRIED)
def open_run(release: Release) -> None:
    """The release's MLflow run, with the policy that it goes by."""
    bench, endpoint, version = release.bench, release.bench.name, release.version
    if not release.row.mlflow_run_id:
        tags = {
            "interlock.endpoint": endpoint,
            "interlock.version": version,
            "interlock.champion": release.row.champion,
        }
        run_id = bench.runs.open_run(endpoint, release.row.id, tags)
        release.set_run(run_id, bench.runs.run_url(run_id))
    if release.row.champion and bench.endpoint.capabilities.per_request_observations:
        release.opened_cursor = bench.endpoint.observations(None).cursor
    release.listeners.append(notices.ramp_listener(release))
    release.trail.document("policy.json", bench.policy.model_dump_json(indent=2))


@task(name="evaluate", **_RETRIED)
def evaluate(release: Release) -> Verdict:
    """Candidate against champion on held-out rows."""
    return _stage(release, Stage.EVALUATE, evaluate_candidate)


def has_staging(release: Release) -> bool:
    """Whether the policy wants every version to pass staging first."""
    return STAGING in release.bench.policy.environments


@task(name="stage", **_RETRIED)
def stage(release: Release) -> Verdict:
    """The version on the staging endpoint: a smoke test, then a load test."""
    return _stage(release, Stage.STAGE, run_staging)


@task(name="place", **_RETRIED)
def place_candidate(release: Release) -> EndpointRow:
    """The candidate healthy in its slot, at zero share."""
    release.enter(Stage.STAGE)
    stand_guard(release.bench)
    release.bench.policy = with_measured_limit(release.bench.policy, release.row.verdicts)
    row = transitions.place(release.bench, release.row, first=release.first)
    endpoint = release.bench.endpoint
    release.meter.look(now=release.bench.clock(), at_once=True)
    if endpoint.capabilities.per_request_observations:
        release.placed_cursor = endpoint.observations(None).cursor
    return row


def shadow(release: Release) -> Verdict:
    """Copies of live requests, answered by the candidate, seen by nobody.

    Raises `Stopped` where answers in words could not be compared until the stage's time was over.
    """
    answer = _shadow(release)
    if isinstance(answer, Stopped):
        raise answer
    return answer


@task(name="shadow", **_RETRIED)
def _shadow(release: Release) -> Verdict | Stopped:
    """A server that was away is an answer, returned: raised, Prefect would log it as a stack trace."""
    try:
        return _stage(release, Stage.SHADOW, run_shadow)
    except ModelApiError as error:
        return Stopped.by(error)


def approval_comes_first(release: Release) -> bool:
    """Whether people are asked before the version is even placed: by the policy, or for want of a shadow."""
    approval = release.bench.policy.approval
    return approval.required and (approval.before == "shadow" or release.first)


def approve(release: Release) -> Verdict:
    """People's yes, where the policy asks for one. Not a task: it suspends the flow run."""
    return _stage(release, Stage.APPROVE, ask_approval)


@task(name="canary", **_RETRIED)
def canary(release: Release, row: EndpointRow) -> Verdict:
    """A rising share of live requests, watched continuously, up to the soak."""
    release.enter(Stage.CANARY)
    release.meter.look(now=release.bench.clock(), at_once=True)
    verdict = run_canary(release, row)
    release.conclude(Stage.CANARY, verdict)
    return verdict


def promote_candidate(release: Release, verdict: Verdict) -> Ended:
    """The soak's PASS commits."""
    release.enter(Stage.PROMOTE)
    _promote(release, verdict.reason)
    return Ended(
        "Promoted", f"version {release.version} is champion of {release.bench.name}: {verdict.reason}"
    )


@task(name="promote", **_RETRIED)
def _promote(release: Release, reason: str) -> None:
    bench = release.bench
    intent = bench.row().intent
    if intent is not None and intent["release_id"] == release.row.id:
        transitions.finish(bench)  # decided by an earlier try
    elif not _ended(release):
        transitions.promote(bench, release.check(), who=release.row.owner, reason=reason, first=release.first)
    row = bench.journal.release(release.row.id)
    if row is None or row.state is not ReleaseState.PROMOTED:
        raise Fenced(f"{release.row.id} is {row.state if row else 'unknown'}: somebody decided otherwise")


def reject_candidate(release: Release, verdict: Verdict) -> Ended:
    """A FAIL verdict: share 0 first, then everything else."""
    _reject(release, verdict.reason, ReleaseState.REJECTED)
    return Ended("Rejected", f"{release.row.stage}: {verdict.reason}")


@task(name="reject", **_RETRIED)
def _reject(release: Release, reason: str, state: ReleaseState) -> None:
    bench = release.bench
    decided_at = bench.clock()
    intent = bench.row().intent
    if intent is not None and intent["release_id"] == release.row.id:
        transitions.finish(bench)
    elif not _ended(release):
        transitions.reject(
            bench, release.row, state=state, who=release.row.owner, reason=reason, at=decided_at
        )


def hold(release: Release, verdict: Verdict) -> Ended:
    """Neither PASS nor FAIL: the release waits for a person; nothing is rejected."""
    message = f"{release.row.stage} is {verdict.outcome}: {verdict.reason}"
    release.check()
    transitions.make_safe(
        release.bench, release.row, who=release.row.owner, reason=message, state=ReleaseState.HELD
    )
    return Ended("Held", message)


def interrupt(release: Release, stopped: Stopped) -> Ended:
    """End this run without a verdict: an abort is carried out, everything else stays resumable.

    A run that was fenced changes nothing at all: somebody newer is in charge.
    """
    bench = release.bench
    try:
        row = release.check()
    except Fenced as error:
        now = bench.journal.release(release.row.id)
        is_aborted = now is not None and now.state is ReleaseState.ABORTED
        return Ended("Aborted", now.reason) if now and is_aborted else Ended("Interrupted", str(error))
    except Aborted as error:
        _reject(release, str(error), ReleaseState.ABORTED)
        return Ended("Aborted", str(error))
    except ServingError as error:
        return Ended("Interrupted", f"{stopped.message}; and then: {error}")
    try:
        transitions.make_safe(bench, row, who=row.owner, reason=stopped.message)
    except ServingError as error:
        ends = "with its lease" if bench.endpoint.capabilities.has_lease else "when the guard takes it back"
        return Ended("Interrupted", f"{stopped.message}; the share ends {ends}, because: {error}")
    return Ended("Interrupted", stopped.message)


def roll_back(endpoint: str, *, reason: str, who: str, force: bool) -> str:
    """Roll an endpoint back, or raise `Stopped` where that is refused. Returns what was done."""
    try:
        return _roll_back(endpoint, reason, who, force)
    except Exception as error:
        raise Stopped.by(error) from error


@task(name="roll back", **_RETRIED)
def _roll_back(endpoint: str, reason: str, who: str, force: bool) -> str:
    bench = Bench.rescue(endpoint, Settings())
    return rolling_back.roll_back(bench, who=who, reason=reason, force=force).message


def close(release: Release, ended: Ended) -> None:
    """Write the documents of the run: decisions, report, outcome. Informs only."""
    release.draw()
    row = release.bench.journal.release(release.row.id)
    if row is None or (row.owner and row.owner != release.row.owner):
        return  # somebody newer writes them
    release.row = row
    try:
        now = release.bench.clock()
        release.meter.end(now=row.ended_at if row.state.final and row.ended_at else now)
        cost = release_cost(release.bench.journal, row, now=now)
        if cost is not None:
            release.trail.numbers(cost_numbers(cost), now=now, step=0)
        write_documents(release)
        release.trail.close(row)
        notices.ending(release, ended.name, ended.message)
    except Exception:  # noqa: BLE001 (documents inform; the outcome stands without them)
        _LOG.warning("the documents of %s are incomplete", row.id, exc_info=True)


def _stage(release: Release, stage: Stage, run: Any) -> Verdict:
    """Run a stage unless an earlier run of this release passed it, and keep its verdict."""
    if release.passed(stage):
        stored = release.row.verdicts[stage.value]
        _LOG.info("%s: %s was passed before", release.row.id, stage.value)
        return Verdict.from_dict(stored)
    release.enter(stage)
    verdict: Verdict = run(release)
    release.conclude(stage, verdict)
    notices.verdict(release, stage, verdict)
    return verdict


def _ended(release: Release) -> bool:
    row = release.bench.journal.release(release.row.id)
    return row is not None and row.state.final
