"""What people ask of releases from a terminal. Light: neither Prefect nor MLflow is imported."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

from configs.settings import Settings
from serving.errors import Refused
from serving.records import ReleaseRow, ReleaseState, Stage
from serving.versions import Pair
from tasks import rolling_back, waiting
from tasks.bench import Bench
from tasks.environments import refuse_environment
from tasks.rest import prefect_api

if TYPE_CHECKING:
    from tasks.watching import WatchReport

RELEASE_DEPLOYMENT = "release/release"


def start_release(
    settings: Settings, endpoint: str, version: str | int, *, again: bool = False, reason: str = ""
) -> str:
    """Create a flow run of the release deployment. Returns the flow run's page.

    A version is `3`, or with a prompt `3+p2` (both) or `p2` (the champion's model stays). Raises
    `Refused` with the running release's link where one is already being run, and for an environment.
    """
    refuse_environment(settings, endpoint, str(version))
    bench = Bench.open(endpoint, settings)
    pair = _pair(version)
    running = bench.journal.open_release(endpoint)
    if running is not None and running.owner and running.owner_until >= bench.clock():
        raise Refused(
            f"{endpoint}: {running.id} is being run in stage {running.stage}: "
            f"{_flow_run_page(settings, running.flow_run_id)}"
        )
    if running is not None:
        waiting.refuse_second_run(settings, running)
    prefect = prefect_api(settings)
    deployment = prefect.call("GET", f"/deployments/name/{RELEASE_DEPLOYMENT}", missing_ok=True)
    if deployment is None:
        raise Refused(f"Prefect has no deployment {RELEASE_DEPLOYMENT}. Next: interlock up (it registers it)")
    parameters = {"endpoint": endpoint, "version": int(pair.model or 0), "again": again, "reason": reason}
    if pair.prompt:
        parameters["prompt"] = int(pair.prompt)
    body = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}
    run = prefect.call("POST", f"/deployments/{deployment['id']}/create_flow_run", body, repeatable=True)
    return _flow_run_page(settings, run["id"])


def pause(settings: Settings, endpoint: str) -> str:
    """Hold the ramp at its present share; it stays watched and can still be rolled back.

    Before its ramp a release holds when it gets there. Raises `Refused` where none runs or waits.
    """
    bench = Bench.open(endpoint, settings)
    release = _open_release(bench)
    if release.state not in (ReleaseState.RUNNING, ReleaseState.WAITING):
        raise Refused(
            f"{release.id} is {release.state} at share 0: nothing runs that could pause. "
            f"Next: interlock resume {endpoint}, or interlock abort {endpoint}"
        )
    if release.stage is Stage.CANARY:
        return _ask(bench, "pause", "holds at its present share; watching goes on")
    return _ask(bench, "pause", f"is in stage {release.stage}; it holds before its first share")


def resume(settings: Settings, endpoint: str) -> str:
    """Let a paused ramp go on, or run an interrupted or held release again."""
    bench = Bench.open(endpoint, settings)
    release = _open_release(bench)
    if release.owner and release.owner_until >= bench.clock():
        return _ask(bench, "", "goes on")
    waiting.refuse_second_run(settings, release)
    _ask(bench, "", "goes on")
    return f"resumed: {start_release(settings, endpoint, release.version, reason='resumed')}"


def abort(settings: Settings, endpoint: str, *, who: str) -> str:
    """End the open release without a verdict: share 0, alias removed, version not rejected."""
    return rolling_back.abort(Bench.rescue(endpoint, settings), who=who)


def answer(settings: Settings, endpoint: str, *, is_yes: bool, who: str, reason: str) -> str:
    """Give a person's answer to the release that waits for approval."""
    return waiting.answer(settings, endpoint, is_yes=is_yes, who=who, reason=reason)


def roll_back(
    settings: Settings, endpoint: str, *, reason: str, who: str, force: bool = False
) -> rolling_back.RollbackReport:
    """Roll back now, in this process: it needs neither Prefect nor MLflow to be up."""
    return rolling_back.roll_back(Bench.rescue(endpoint, settings), who=who, reason=reason, force=force)


def watch(settings: Settings, endpoint: str, *, run_s: float) -> Iterator[WatchReport]:
    """Watch an endpoint in this process: one report a look."""
    from tasks.watching import watch as watch_benches

    return watch_benches([Bench.open(endpoint, settings)], run_s=run_s)


def is_version(text: str) -> bool:
    """Whether a text names a version: `3`, `3+p2` or `p2`."""
    try:
        Pair.read(text)
    except ValueError:
        return False
    return True


def _pair(version: str | int) -> Pair:
    try:
        return Pair.read(str(version))
    except ValueError as error:
        raise Refused(str(error)) from error


def _ask(bench: Bench, request: str, effect: str) -> str:
    release = bench.journal.ask(_open_release(bench).id, request)
    if release.request != request:
        raise Refused(
            f"{release.id} was asked to end before; that stands. Next: interlock abort {bench.name} ends it "
            "where nothing runs, interlock status shows it"
        )
    return f"{release.id} {effect}"


def _open_release(bench: Bench) -> ReleaseRow:
    release = bench.journal.open_release(bench.name)
    if release is None:
        raise Refused(f"{bench.name}: no release is open. Next: interlock release {bench.name} VERSION")
    return release


def _flow_run_page(settings: Settings, run_id: str) -> str:
    return f"{settings.prefect_url.removesuffix('/api')}/runs/flow-run/{run_id}"
