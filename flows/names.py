"""Names of flow runs, as Prefect's lists show them."""

from __future__ import annotations

from collections.abc import Callable

from prefect.runtime import flow_run


def by_endpoint(flow: str) -> Callable[[], str]:
    """`watch flights`, or `watch all endpoints` where the run was given none."""
    return lambda: f"{flow} {flow_run.get_parameters().get('endpoint') or 'all endpoints'}"
