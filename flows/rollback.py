"""The rollback flow: the only way back that a person or an automation uses."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from tasks.endings import named_state
from tasks.stages import Stopped, roll_back


@flow(name="rollback", flow_run_name="{endpoint}")
def roll_back_endpoint(
    endpoint: str, reason: str, who: str = "a person in Prefect", force: bool = False
) -> State:
    """Take the endpoint back: from an open release to its champion, else to the previous version.

    Args:
        endpoint: Name of the endpoint, as in its policy file.
        reason: Why, for the trail.
        who: Who asked.
        force: Go back although the signatures say that clients would notice, and without asking the
            previous version recent requests first.
    """
    try:
        message = roll_back(endpoint, reason=reason, who=who, force=force)
    except Stopped as stopped:
        return named_state(stopped.name, stopped.message)
    return named_state("RolledBack", message)
