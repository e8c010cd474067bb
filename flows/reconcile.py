"""The scheduled sweep: finishes what was interrupted and starts what a lost webhook missed."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.endings import named_state
from tasks.sweeping import endpoints_to_sweep, start_missed_release, sweep_endpoint


@flow(name="reconcile", flow_run_name="sweep")
def reconcile() -> str | State:
    """One sweep over every endpoint that has a policy; each one on its own."""
    said: list[str] = []
    failed: list[str] = []
    for endpoint in endpoints_to_sweep():
        for step in (sweep_endpoint, start_missed_release):
            try:
                said.extend(step(endpoint))
            except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not stop the others)
                failed.append(f"{endpoint}: {error}")
    if failed:
        return named_state("Incomplete", "; ".join([*failed, *said]))
    return "; ".join(said) or "everything is as the journal says"
