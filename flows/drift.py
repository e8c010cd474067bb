"""The scheduled drift check: each endpoint's newest whole window, judged once."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from configs.loading import load_settings
from flows.names import by_endpoint
from tasks.drift_flow import check_endpoint, endpoints_with_drift
from tasks.endings import named_state


@flow(name="drift", flow_run_name=by_endpoint("drift"))
def drift(endpoint: str = "", again: bool = False) -> str | State:
    """Compare live inputs and answers with their reference, and do what the decision table says.

    Args:
        endpoint: Name of one endpoint, as in its policy file; empty: all that have a `drift` section.
        again: Judge the newest window again although it was judged before.
    """
    said: list[str] = []
    failed: list[str] = []
    for name in [endpoint] if endpoint else endpoints_with_drift(load_settings()):
        try:
            said.append(check_endpoint(name, again=again))
        except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not stop the others)
            failed.append(f"{name}: {error}")
    if failed:
        return named_state("Incomplete", "; ".join([*failed, *said]))
    return "; ".join(said) or "no endpoint has a drift section in its policy"
