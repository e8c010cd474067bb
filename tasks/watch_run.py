"""One scheduled run of the watch as a Prefect task: many looks, one summary."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.settings import Settings
from evals.verdict import Outcome
from tasks.bench import Bench
from tasks.status import all_endpoints
from tasks.watching import WatchReport, watch

_LOG = logging.getLogger("interlock.watch")


@dataclass(slots=True)
class WatchRun:
    """What a run came to, in sentences: the last word on each endpoint, and every rollback."""

    rolled_back: list[str] = field(default_factory=list)
    harmed: list[str] = field(default_factory=list)
    blind: list[str] = field(default_factory=list)
    fine: list[str] = field(default_factory=list)


@task(name="watch", cache_policy=NO_CACHE, persist_result=False)
def watch_endpoints(endpoint: str, seconds: float | None) -> WatchRun:
    """Watch one endpoint, or every one whose policy says so, until the time is over."""
    settings = Settings()
    run = WatchRun()
    benches: list[Bench] = []
    for name in [endpoint] if endpoint else all_endpoints(settings):
        try:
            bench = Bench.open(name, settings)
        except Exception as error:  # noqa: BLE001 (one broken policy must not blind the others)
            run.blind.append(f"{name}: {error}")
            continue
        if bench.policy.watch.enabled or endpoint:
            benches.append(bench)
    last: dict[str, WatchReport] = {}
    for report in watch(benches, run_s=seconds):
        last[report.endpoint] = report
        if report.rollback is not None:
            run.rolled_back.append(report.rollback.message)
        _LOG.info("%s: %s %s: %s", report.endpoint, report.outcome, report.step, report.reason)
    for name, report in last.items():
        kind = {Outcome.FAIL: run.harmed, Outcome.ERROR: run.blind}.get(Outcome(report.outcome), run.fine)
        kind.append(f"{name}: {report.reason}")
    return run
