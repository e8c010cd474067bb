"""What people ask of releases from a terminal. Light: neither Prefect nor MLflow is imported."""

from __future__ import annotations

import os
from typing import Any

import httpx

from configs.settings import Settings
from serving.errors import Refused, TransientError
from tasks import rolling_back
from tasks.bench import Bench

RELEASE_DEPLOYMENT = "release/release"


class PrefectUnavailable(TransientError):
    """The Prefect API does not answer."""


def start_release(
    settings: Settings, endpoint: str, version: int, *, again: bool = False, reason: str = ""
) -> str:
    """Create a flow run of the release deployment. Returns the flow run's page.

    Raises `Refused` with the running release's link where one is already being run.
    """
    bench = Bench.open(endpoint, settings)
    running = bench.journal.open_release(endpoint)
    if running is not None and running.owner and running.owner_until >= bench.clock():
        raise Refused(
            f"{endpoint}: {running.id} is being run in stage {running.stage}: "
            f"{_flow_run_page(settings, running.flow_run_id)}"
        )
    deployment = _prefect(settings, "GET", f"/deployments/name/{RELEASE_DEPLOYMENT}")
    parameters = {"endpoint": endpoint, "version": int(version), "again": again, "reason": reason}
    run = _prefect(
        settings, "POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters}
    )
    return _flow_run_page(settings, run["id"])


def pause(settings: Settings, endpoint: str) -> str:
    """Hold the ramp at its present share; it stays watched and can still be rolled back."""
    return _ask(settings, endpoint, "pause", "holds at its present share; watching goes on")


def resume(settings: Settings, endpoint: str) -> str:
    """Let a paused ramp go on, or run an interrupted or held release again."""
    bench = Bench.open(endpoint, settings)
    release = bench.journal.open_release(endpoint)
    if release is None:
        raise Refused(f"{endpoint}: no release is open. Next: interlock release {endpoint} VERSION")
    if release.owner and release.owner_until >= bench.clock():
        return _ask(settings, endpoint, "", "goes on")
    return f"resumed: {start_release(settings, endpoint, int(release.version), reason='resumed')}"


def abort(settings: Settings, endpoint: str, *, who: str) -> str:
    """End the open release without a verdict: share 0, alias removed, version not rejected."""
    return rolling_back.abort(Bench.open(endpoint, settings), who=who)


def roll_back(settings: Settings, endpoint: str, *, reason: str, who: str) -> rolling_back.RollbackReport:
    """Roll back now, in this process: it needs neither Prefect nor MLflow to be up."""
    return rolling_back.roll_back(Bench.open(endpoint, settings), who=who, reason=reason)


def _ask(settings: Settings, endpoint: str, request: str, effect: str) -> str:
    bench = Bench.open(endpoint, settings)
    release = bench.journal.open_release(endpoint)
    if release is None:
        raise Refused(f"{endpoint}: no release is open.")
    bench.journal.ask(release.id, request)
    return f"{release.id} {effect}"


def _flow_run_page(settings: Settings, run_id: str) -> str:
    return f"{settings.prefect_url.removesuffix('/api')}/runs/flow-run/{run_id}"


def _prefect(
    settings: Settings, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One call of Prefect's REST API: importing its client would cost the terminal two seconds."""
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    try:
        reply = httpx.request(
            method,
            settings.prefect_url + path,
            json=body,
            auth=(user, password) if user else None,
            timeout=15,
        )
    except httpx.HTTPError as error:
        raise PrefectUnavailable(
            f"Prefect at {settings.prefect_url} does not answer ({error.__class__.__name__}). "
            "Next: interlock doctor"
        ) from error
    if reply.status_code == httpx.codes.NOT_FOUND:
        raise Refused(f"Prefect does not know {path}. Next: interlock up (it registers the deployments)")
    if reply.is_error:
        raise Refused(f"Prefect answered {reply.status_code} to {path}: {reply.text[:300]}")
    return reply.json()
