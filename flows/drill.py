"""The scheduled drill: a known-bad version is released on the drill endpoints, and must be stopped."""

from __future__ import annotations

from typing import Literal

from prefect import flow
from prefect.client.schemas.objects import State

from configs.drill import Fault
from configs.loading import load_settings
from flows.names import by_endpoint
from tasks.drill_flow import drill_endpoint, drill_endpoints
from tasks.endings import named_state


@flow(name="drill", flow_run_name=by_endpoint("drill"))
def drill(endpoint: str = "", fault: Literal["", Fault] = "") -> str | State:
    """Rehearse a rollback where no real client calls. A failed drill is a critical alert.

    Args:
        endpoint: Name of one drill endpoint; empty: all whose policy has a `drill` section.
        fault: One of the policy's faults; empty: the one that was drilled longest ago.
    """
    said: list[str] = []
    failed: list[str] = []
    for name in [endpoint] if endpoint else drill_endpoints(load_settings()):
        try:
            passed, words = drill_endpoint(name, fault)
            (said if passed else failed).append(words)
        except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not stop the others)
            failed.append(f"{name}: {error}")
    if failed:
        return named_state("DrillFailed", "; ".join([*failed, *said]))
    return "; ".join(said) or "no policy makes an endpoint a drill endpoint"
