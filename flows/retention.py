"""The scheduled deletion of what is older than the policies say."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.endings import named_state
from tasks.retention_flow import (
    endpoints_to_retain,
    retain_endpoint,
    retain_shared_logs,
    retain_shared_models,
)


@flow(name="retention", flow_run_name="retention")
def retention() -> str | State:
    """Compact captures, then delete captures, labels, spools, reports, logs and models that are too old."""
    said: list[str] = []
    failed: list[str] = []
    for name in endpoints_to_retain():
        try:
            said.append(retain_endpoint(name))
        except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not stop the others)
            failed.append(f"{name}: {error}")
    for what, shared in (("logs", retain_shared_logs), ("models", retain_shared_models)):
        try:
            said.append(shared())
        except Exception as error:  # noqa: BLE001 (the same)
            failed.append(f"{what}: {error}")
    if failed:
        return named_state("Incomplete", "; ".join([*failed, *said]))
    return "; ".join(said)
