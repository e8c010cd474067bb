"""The retention flow's tasks: one endpoint each, then what all of them share."""

from __future__ import annotations

import time

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.settings import Settings
from tasks.bench import Bench
from tasks.retention import retain, retain_copies, retain_logs, retain_models
from tasks.sweeping import endpoints_to_sweep


@task(name="retain", task_run_name="retain {endpoint}", cache_policy=NO_CACHE)
def retain_endpoint(endpoint: str) -> str:
    """Compact and delete what is older than an endpoint's policy says."""
    return retain(Bench.open(endpoint)).words


@task(name="retain what is shared", cache_policy=NO_CACHE)
def retain_shared() -> str:
    """Delete old lines of the access log, old program logs, and old local copies of data and models."""
    settings, names, now = Settings(), endpoints_to_sweep(), time.time()
    parts = (retain_logs, retain_copies, retain_models)
    return "; ".join(part(settings, names, now=now) for part in parts)


def endpoints_to_retain() -> list[str]:
    """Every endpoint with a policy file."""
    return endpoints_to_sweep()
