"""The drill flow's task: one endpoint, one fault, with a table of the last results."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from configs.settings import Settings
from serving.errors import Refused
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.drill import DrillResult, chosen_faults, past_drills, run_drill, words
from tasks.notices import quietly

_SHOWN = ("fault", "passed", "state", "stage", "stopped_s", "traffic_s", "failed", "requests", "reason")


def drill_endpoints(settings: Settings) -> list[str]:
    """Endpoints whose policy has a `drill` section, and those whose policy cannot be read: those fail."""
    from configs.loading import load_policies

    policies, errors = load_policies(settings.policy_folder)
    broken = [error.path.stem for error in errors]
    return sorted([name for name, policy in policies.items() if policy.drill is not None] + broken)


@task(name="drill", task_run_name="drill {endpoint}", cache_policy=NO_CACHE)
def drill_endpoint(endpoint: str, fault: str = "") -> tuple[bool, str]:
    """Rehearse one fault; whether it was stopped with everything back, and what happened in words.

    A night without a rehearsal proves nothing, so a refusal (an open release, say) is an alert as well.
    """
    bench = Bench.open(endpoint)
    try:
        (chosen,) = chosen_faults(bench, [fault] if fault else [], every=False)
        result = run_drill(bench, chosen)
    except Refused as refused:
        alert(
            bench,
            "critical",
            f"the drill did not take place: {refused}",
            numbers={},
            next_step=f"interlock status {endpoint}",
            key="drill-refused",
        )
        raise
    quietly(lambda: _show(bench, result))
    return result.passed, words(result)


def _show(bench: Bench, result: DrillResult) -> None:
    rows = [{name: line.get(name, "") for name in _SHOWN} for line in past_drills(bench)]
    create_table_artifact(key=f"{bench.name}-drills", table=rows, description=words(result)[:1000])
