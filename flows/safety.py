"""What an automation runs when a release's flow run died: share 0, resumable, nothing rejected."""

from __future__ import annotations

from prefect import flow

from tasks.sweeping import make_release_safe


@flow(name="make-safe", flow_run_name="{flow_run_id}")
def make_safe(flow_run_id: str) -> str:
    """Take the share of a dead release run back at once.

    Args:
        flow_run_id: The Prefect flow run that ended Crashed, Failed, Cancelled or TimedOut.
    """
    return make_release_safe(flow_run_id)
