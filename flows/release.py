"""The release flow: moves one version to production as far as the evidence allows.

Read it top-down: it is the paragraph that describes a release. Everything it calls can be
repeated; running the flow again resumes an interrupted release. Its final states have names of
their own, so that Prefect's automations never mistake a rejection for a crash: Promoted,
Rejected, Aborted, Held, Refused, Interrupted.
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import NonNegativeInt

from tasks.early_start import starting_early
from tasks.endings import named_state
from tasks.stages import (
    Ended,
    Release,
    Stopped,
    Verdict,
    approval_comes_first,
    approve,
    asked_version,
    canary,
    claim,
    close,
    evaluate,
    has_staging,
    hold,
    interrupt,
    open_run,
    place_candidate,
    promote_candidate,
    reject_candidate,
    shadow,
    stage,
)


def _run_name() -> str:
    """`support v3+p2`, or `support p2` where only the prompt was asked for."""
    given = flow_run.get_parameters()
    asked = asked_version(given["version"], given["prompt"])
    return f"{given['endpoint']} {'' if asked.startswith('p') else 'v'}{asked}"


@flow(name="release", flow_run_name=_run_name, log_prints=False)
def release_model(
    endpoint: str,
    version: NonNegativeInt = 0,
    again: bool = False,
    reason: str = "",
    prompt: NonNegativeInt = 0,
) -> State:
    """Release a registered model version onto an endpoint.

    Args:
        endpoint: Name of the endpoint, as in its policy file.
        version: Version of the policy's registered model; 0 keeps the champion's.
        again: Release a version that was rejected or rolled back before; needs a reason.
        reason: Why, for the trail.
        prompt: Version of the policy's registered prompt; 0 keeps the champion's.
    """
    try:
        release = claim(endpoint, asked_version(version, prompt), again=again, reason=reason)
    except Stopped as stopped:
        return named_state(stopped.name, stopped.message)
    with release:
        try:
            ended = advance(release)
        except Stopped as stopped:
            ended = interrupt(release, stopped)
        except Exception as error:  # noqa: BLE001 (whatever it is, the release must end resumable)
            ended = interrupt(release, Stopped.by(error))
        close(release, ended)
    return named_state(ended.name, ended.message)


def advance(release: Release) -> Ended:
    """The stages in their order; each returns a verdict, and only PASS leads on."""
    with starting_early(release):
        open_run(release)
        # A language model is judged by what its replica answers: it is placed first, at zero share too.
        row = place_candidate(release) if release.judged_in_place else None
        evidence = verdict = evaluate(release)
    if verdict.passed and has_staging(release):
        verdict = stage(release)
    if verdict.passed and approval_comes_first(release):
        verdict = approve(release)
    if not verdict.passed:
        return _stop(release, verdict)
    row = row or place_candidate(release)
    if release.first:
        return promote_candidate(release, evidence)
    for gate in (shadow, approve):
        verdict = gate(release)
        if not verdict.passed:
            return _stop(release, verdict)
    verdict = canary(release, row)
    return promote_candidate(release, verdict) if verdict.passed else _stop(release, verdict)


def _stop(release: Release, verdict: Verdict) -> Ended:
    """A FAIL rejects the version; anything else that is not a PASS only holds it."""
    return reject_candidate(release, verdict) if verdict.failed else hold(release, verdict)
