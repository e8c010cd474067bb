"""The scheduled watch: does what serves keep its service levels, and if not, would going back help?"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from flows.names import by_endpoint
from tasks.endings import named_state
from tasks.watch_run import WatchRun, watch_endpoints


@flow(name="watch", flow_run_name=by_endpoint("watch"))
def watch(endpoint: str = "", seconds: float = 0) -> str | State:
    """Look again and again at what serves; roll back harm that the previous version does not suffer.

    Args:
        endpoint: Name of one endpoint, as in its policy file; every endpoint without it.
        seconds: How long to go on looking; 0: as long as each policy's `watch.run_s` says.
    """
    run: WatchRun = watch_endpoints(endpoint, seconds or None)
    if run.rolled_back:
        return named_state("RolledBack", "; ".join(run.rolled_back))
    if run.harmed:
        return named_state("Harmed", "; ".join(run.harmed))
    if run.blind:
        return named_state("Blind", "; ".join(run.blind))
    return "; ".join(run.fine) or "there is nothing to watch"
