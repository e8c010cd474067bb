"""The scheduled sweep: finishes what was interrupted and starts what a lost webhook missed."""

from __future__ import annotations

from prefect import flow

from tasks.sweeping import endpoints_to_sweep, start_missed_release, sweep_endpoint


@flow(name="reconcile", flow_run_name="sweep")
def reconcile() -> str:
    """One sweep over every endpoint that has a policy; each one on its own."""
    said: list[str] = []
    for endpoint in endpoints_to_sweep():
        said.extend(sweep_endpoint(endpoint))
        said.extend(start_missed_release(endpoint))
    return "; ".join(said) or "everything is as the journal says"
