"""The retention flow's tasks: one endpoint each, then what all of them share."""

from __future__ import annotations

import time

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.settings import Settings
from tasks.bench import Bench
from tasks.retention import retain, retain_logs, retain_models
from tasks.sweeping import endpoints_to_sweep


@task(name="retain", task_run_name="retain {endpoint}", cache_policy=NO_CACHE)
def retain_endpoint(endpoint: str) -> str:
    """Compact and delete what is older than an endpoint's policy says."""
    return retain(Bench.open(endpoint)).words


@task(name="retain logs", cache_policy=NO_CACHE)
def retain_shared_logs() -> str:
    """Delete old lines of the access log, and old program logs."""
    return retain_logs(Settings(), endpoints_to_sweep(), now=time.time())


@task(name="retain models", cache_policy=NO_CACHE)
def retain_shared_models() -> str:
    """Remove local copies of models and weights that nobody used for long."""
    return retain_models(Settings(), endpoints_to_sweep(), now=time.time())


def endpoints_to_retain() -> list[str]:
    """Every endpoint with a policy file."""
    return endpoints_to_sweep()
