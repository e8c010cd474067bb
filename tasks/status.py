"""What the terminal shows: read from the journal and the platform, never remembered."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from configs.settings import Settings
from serving.errors import ServingError
from serving.journal import Journal
from serving.records import ReleaseRow
from tasks.bench import Bench
from tasks.costing import cost_words, release_cost
from tasks.engines import read_engines, read_guards


def all_endpoints(settings: Settings) -> list[str]:
    """Every endpoint that has a policy file."""
    return sorted(path.stem for path in settings.policy_folder.glob("*.yaml"))


def endpoint_status(settings: Settings, name: str) -> dict[str, Any]:
    """One endpoint now: who serves, what is under way, and what the platform itself reports.

    `live` is the platform's own word (None with `live_error` where it does not answer).
    """
    bench = Bench.open(name, settings)
    row = bench.row()
    release = bench.journal.open_release(name)
    newest = next(iter(bench.journal.releases(name)), None)
    status: dict[str, Any] = {
        "endpoint": name,
        "model": bench.policy.model,
        "owner": bench.policy.owner,
        "champion": row.champion,
        "champion_slot": row.default_slot,
        "other_version": row.other_version,
        "generation": row.generation,
        "share_percent": row.share_bp / 100 if row.until > bench.clock() else 0.0,
        "lease_s": max(0.0, row.until - bench.clock()) if row.share_bp else 0.0,
        "intent": dict(row.intent) if row.intent else None,
        "release": release_summary(settings, release, bench.journal) if release else None,
        "last_release": release_summary(settings, newest, bench.journal) if newest else None,
        "live": None,
    }
    try:
        state = bench.endpoint.describe()
    except ServingError as error:
        status["live_error"] = str(error)
        return status
    status["live"] = {
        "route": asdict(state.route) if state.route else None,
        "replicas": {
            slot.value: [asdict(replica) for replica in found] for slot, found in state.replicas.items()
        },
        "versions": {slot.value: version for slot, version in state.versions.items()},
    }
    engines = read_engines(bench)
    if engines:
        status["engines"] = {
            slot.value: {name: asdict(gauges) if gauges else None for name, gauges in found.items()}
            for slot, found in engines.items()
        }
    guards = read_guards(bench)
    if guards:
        status["guards"] = {slot.value: counts for slot, counts in guards.items()}
    return status


def release_history(settings: Settings, name: str) -> list[dict[str, Any]]:
    """All releases of an endpoint, newest first."""
    journal = Journal(settings.journal)
    try:
        return [release_summary(settings, release, journal) for release in journal.releases(name)]
    finally:
        journal.close()


def endpoint_audit(settings: Settings, name: str, *, limit: int = 200) -> list[dict[str, Any]]:
    """The trail of an endpoint, newest first."""
    journal = Journal(settings.journal)
    try:
        return [asdict(line) for line in journal.audit(name, limit=limit)]
    finally:
        journal.close()


def release_summary(settings: Settings, release: ReleaseRow, journal: Journal) -> dict[str, Any]:
    """One release as plain values, with its links and what its machines cost so far."""
    cost = release_cost(journal, release, now=time.time())
    ui = settings.prefect_url.removesuffix("/api")
    return {
        "release": release.id,
        "endpoint": release.endpoint,
        "version": release.version,
        "champion": release.champion,
        "state": release.state.value,
        "stage": release.stage.value,
        "reason": release.reason,
        "request": release.request,
        "started_at": release.started_at,
        "ended_at": release.ended_at,
        "decided_at": release.decided_at,
        "decided_stage": release.decided_stage,
        "verdicts": {
            stage: {
                "outcome": stored["outcome"],
                "reason": stored["reason"],
                "would_change": stored.get("would_change", ""),
            }
            for stage, stored in release.verdicts.items()
        },
        "progress": dict(release.progress),
        "cost": cost,
        "cost_words": cost_words(cost, release.version) if cost else "",
        "flow_run_url": f"{ui}/runs/flow-run/{release.flow_run_id}" if release.flow_run_id else "",
        "mlflow_run_id": release.mlflow_run_id,
        "mlflow_url": release.mlflow_url,
    }
