"""The scheduled deletion of what is older than the policies say."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.endings import named_state
from tasks.retention_flow import endpoints_to_retain, retain_endpoint, retain_shared


@flow(name="retention", flow_run_name="retention")
def retention() -> str | State:
    """Compact captures, then delete captures, labels, spools, pages, copies and logs that are too old."""
    said: list[str] = []
    failed: list[str] = []
    for name in endpoints_to_retain():
        try:
            said.append(retain_endpoint(name))
        except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not stop the others)
            failed.append(f"{name}: {error}")
    try:
        said.append(retain_shared())
    except Exception as error:  # noqa: BLE001 (the same)
        failed.append(f"logs, copies and models: {error}")
    if failed:
        return named_state("Incomplete", "; ".join([*failed, *said]))
    return "; ".join(said)
