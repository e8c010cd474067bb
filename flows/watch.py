"""The scheduled watch: does what serves keep its service levels, and if not, would going back help?"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.endings import named_state
from tasks.watch_run import WatchRun, watch_endpoints


@flow(name="watch", flow_run_name="watch {endpoint}")
def watch(endpoint: str = "", seconds: float | None = None) -> str | State:
    """Look again and again at what serves; roll back harm that the previous version does not suffer.

    Args:
        endpoint: Name of one endpoint, as in its policy file; every endpoint without it.
        seconds: How long to go on looking; each policy's `watch.run_s` without it.
    """
    run: WatchRun = watch_endpoints(endpoint, seconds)
    if run.rolled_back:
        return named_state("RolledBack", "; ".join(run.rolled_back))
    if run.harmed:
        return named_state("Harmed", "; ".join(run.harmed))
    if run.blind:
        return named_state("Blind", "; ".join(run.blind))
    return "; ".join(run.fine) or "there is nothing to watch"
