"""The scheduled guard: returns shares that nobody renewed, where the platform holds no lease."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.endings import named_state
from tasks.guarding import guard_endpoint
from tasks.sweeping import endpoints_to_sweep


@flow(name="guard", flow_run_name="guard")
def guard() -> str | State:
    """Guard every endpoint that has a policy; each one on its own."""
    said: list[str] = []
    failed: list[str] = []
    for endpoint in endpoints_to_sweep():
        try:
            said.append(guard_endpoint(endpoint))
        except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not leave the others unguarded)
            failed.append(f"{endpoint}: {error}")
    done = [words for words in said if words]
    if failed:
        return named_state("Incomplete", "; ".join([*failed, *done]))
    return "; ".join(done) or "no share had run out"
