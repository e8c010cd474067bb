"""The scheduled taking of labels: the truth that came since, joined to what was answered."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from configs.loading import load_settings
from flows.names import by_endpoint
from tasks.endings import named_state
from tasks.labels_flow import endpoints_with_labels, take_labels


@flow(name="labels", flow_run_name=by_endpoint("labels"))
def labels(endpoint: str = "") -> str | State:
    """Take new labels from where each policy says; they feed the watch, the canary and drift.

    Args:
        endpoint: Name of one endpoint, as in its policy file; empty: all whose policy has a place for labels.
    """
    said: list[str] = []
    failed: list[str] = []
    for name in [endpoint] if endpoint else endpoints_with_labels(load_settings()):
        try:
            said.append(take_labels(name))
        except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not stop the others)
            failed.append(f"{name}: {error}")
    if failed:
        return named_state("Incomplete", "; ".join([*failed, *said]))
    return "; ".join(said) or "no policy says where labels come"
