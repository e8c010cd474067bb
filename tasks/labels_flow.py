"""The labels flow's task: one endpoint's place of labels, taken as it is now."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.settings import Settings
from serving.errors import TransientError
from tasks.bench import Bench
from tasks.labels import take_scheduled, words


def endpoints_with_labels(settings: Settings) -> list[str]:
    """Endpoints whose policy says where labels come, and those whose policy cannot be read: those fail."""
    from configs.loading import load_policies

    policies, errors = load_policies(settings.policy_folder)
    named = [
        name
        for name, policy in policies.items()
        if policy.labels is not None and (policy.labels.path or policy.labels.table)
    ]
    return sorted([*named, *(error.path.stem for error in errors)])


def _worth_retrying(_task: object, _run: object, state: object) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError)  # type: ignore[attr-defined]


@task(
    name="labels",
    task_run_name="labels {endpoint}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=_worth_retrying,
)
def take_labels(endpoint: str) -> str:
    """Take an endpoint's new labels from where its policy says."""
    report = take_scheduled(Bench.open(endpoint))
    return f"{endpoint}: its policy names no place for labels" if report is None else words(report)
