"""The guard's schedule: on where an endpoint lives on a platform without leases, off everywhere else.

A flow run every minute costs a local stack seconds of CPU for nothing, so prefect.yaml has the schedule
switched off. `interlock up` switches it by the policies; a release that is about to give shares on such
a platform switches it on as well, for its policy may be younger than the stack.
"""

from __future__ import annotations

from collections.abc import Iterable

from configs.policy import Policy
from configs.settings import Settings
from serving.errors import Refused, ServingError
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.rest import prefect_api

_DEPLOYMENT = "guard/guard"


def schedule_guard(settings: Settings, *, is_needed: bool) -> None:
    """Switch the schedule. Raises `Refused` where Prefect has no such deployment, ServerUnavailable."""
    api = prefect_api(settings)
    found = api.call("GET", f"/deployments/name/{_DEPLOYMENT}", missing_ok=True)
    if found is None:
        raise Refused(f"Prefect has no deployment {_DEPLOYMENT}. Next: interlock up (it registers it)")
    for schedule in found["schedules"]:
        if schedule["active"] is not is_needed:
            path = f"/deployments/{found['id']}/schedules/{schedule['id']}"
            api.call("PATCH", path, {"active": is_needed})


def is_guard_needed(policies: Iterable[Policy]) -> bool:
    """Whether any endpoint lives where no lease exists."""
    return any(policy.platform != "local" for policy in policies)


def stand_guard(bench: Bench) -> None:
    """Have the guard run from now on, where the platform holds no lease; a person is told if it cannot."""
    if bench.endpoint.capabilities.has_lease:
        return
    try:
        schedule_guard(bench.settings, is_needed=True)
    except ServingError as error:
        alert(
            bench,
            "warning",
            f"the guard is not scheduled, so only this release itself takes its share back: {error}",
            numbers={},
            next_step="interlock up, then look at the deployment guard in Prefect",
            key="no guard",
        )
