"""Repairs: finishing interrupted changes, freeing dead releases, retiring cold slots, missed events."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from configs.environments import STAGING
from configs.loading import load_policies
from configs.settings import Settings
from serving.capture.segments import purge_segments
from serving.endpoint import Slot
from serving.journal import Journal
from serving.records import ReleaseState
from tasks import notices, rolling_back, transitions, waiting
from tasks.bench import Bench
from tasks.control import start_release
from tasks.messenger import send_again
from tasks.registry import CANDIDATE, CHAMPION
from tasks.staging import clear, staging_of

_LOG = logging.getLogger("interlock.sweep")
_SWEEPER = "reconcile"
_CLAIM_WAIT_S = 600.0
"""So long a flow run that was started has to claim its release, before another one is started."""


def endpoints_to_sweep() -> list[str]:
    """Every endpoint with a policy file."""
    folder = Settings().policy_folder
    return sorted(path.stem for path in folder.glob("*.yaml"))


@task(name="sweep", cache_policy=NO_CACHE)
def sweep_endpoint(endpoint: str) -> list[str]:
    """Bring one endpoint's traffic, aliases and slots to what the journal says. Returns what it did."""
    bench = Bench.open(endpoint)
    said: list[str] = []
    row = bench.row()
    if row.intent is not None:
        transitions.finish(bench)
        said.append(f"{endpoint}: finished {row.intent['kind']} of version {row.intent['winner']}")
    notices.free_dead_owner(bench)
    release = bench.journal.open_release(endpoint)
    now = bench.clock()
    if release is not None and release.state is ReleaseState.RUNNING and release.owner_until < now:
        transitions.make_safe(bench, release, who=_SWEEPER, reason="its flow run stopped renewing its claim")
        said.append(f"{endpoint}: {release.id} made safe, it can be resumed")
    overdue = release is not None and waiting.is_overdue(release, now)
    if release is not None and overdue and not waiting.was_resumed(bench.settings, release):
        said.append(waiting.expire(bench, release, who=_SWEEPER))
        release = None
    if release is not None and release.request == "abort" and not release.owner:
        said.append(rolling_back.abort(bench, who=_SWEEPER))
        release = None
    row = transitions.follow_journal(bench)
    if row.champion and not _is_anothers(bench, bench.registry.aliased(bench.policy.model, CHAMPION)):
        bench.registry.point(bench.policy.model, CHAMPION, row.champion)
    if release is None and row.other_version and 0 < row.keep_until <= now:
        slot = row.default.sibling
        row = bench.journal.change(
            endpoint,
            generation=row.generation,
            new_generation=row.generation + 1,
            now=now,
            keep_until=0.0,
            **{f"{slot.value}_version": ""},
        )
        transitions.follow_journal(bench)
        if _retire_free(bench, slot):
            said.append(f"{endpoint}: the previous version left slot {slot.value}")
    other = row.default.sibling
    if release is None and bench.endpoint.describe().versions.get(other) and _retire_free(bench, other):
        said.append(f"{endpoint}: what an ended release had left in slot {other.value} is gone")
    said += _clear_staging(bench)
    said += send_again(bench)
    for slot in Slot:
        # Writers delete what is too old; those that died cannot.
        purge_segments(
            bench.settings.spool_dir / endpoint / slot.value,
            opened_before=now - bench.policy.capture.spool.max_age_s,
        )
    return said


def _retire_free(bench: Bench, slot: Slot) -> bool:
    """Take down what runs in a slot that no version is in, unless a rollback starts one there just now."""
    row = bench.row()
    if row.version_in(slot) or row.keep_until > bench.clock() or bench.journal.open_release(bench.name):
        return False
    bench.endpoint.retire(slot)
    return True


def _is_anothers(bench: Bench, version: str) -> bool:
    """Whether another endpoint of this model serves a version: an alias is the model's, not an endpoint's."""
    if not version:
        return False  # the alias is gone; an endpoint that never served has no champion either
    policies, _ = load_policies(bench.settings.policy_folder)
    names = {name for name, one in policies.items() if one.model == bench.policy.model} - {bench.name}
    return any(row.champion == version for row in bench.journal.endpoints() if row.name in names)


def _clear_staging(bench: Bench) -> list[str]:
    """Take down a staging endpoint that a killed rehearsal left up."""
    if STAGING not in bench.policy.environments:
        return []
    there = staging_of(bench)
    return [f"{there.name}: taken down, nothing uses it"] if clear(there) else []


@task(name="catch up", cache_policy=NO_CACHE)
def start_missed_release(endpoint: str) -> list[str]:
    """Start the release of a `candidate` alias that no event started; never of a version known as bad."""
    bench = Bench.open(endpoint)
    version = bench.registry.aliased(bench.policy.model, CANDIDATE)
    if not version or bench.journal.open_release(endpoint) is not None or bench.row().champion == version:
        return []
    if any(release.version == version for release in bench.journal.releases(endpoint)):
        return []  # it was tried: only a person starts it again
    waits, started = f"candidate {version} waits", f"candidate {version} started"
    now = bench.clock()
    if not bench.journal.audit(endpoint, what=(waits,), limit=1):
        bench.journal.record(endpoint, waits, who=_SWEEPER, now=now)
        return []  # its event is probably on its way; the next sweep acts
    if bench.journal.audit(endpoint, what=(started,), since=now - _CLAIM_WAIT_S, limit=1):
        return []  # its flow run is on its way to claim the release
    url = start_release(bench.settings, endpoint, version, reason="alias candidate found by the sweep")
    bench.journal.record(endpoint, started, who=_SWEEPER, now=now, flow_run_url=url)
    return [f"{endpoint}: started the release of version {version}: {url}"]


@task(name="make safe", cache_policy=NO_CACHE)
def make_release_safe(flow_run_id: str) -> str:
    """Make the release of a dead flow run safe; nothing to do where it already ended or moved on."""
    settings = Settings()
    journal = Journal(settings.journal)
    release = next((row for row in journal.releases() if row.flow_run_id == flow_run_id), None)
    if release is None:
        return f"no release belongs to flow run {flow_run_id}"
    bench = Bench.open(release.endpoint, settings)
    if waiting.is_overdue(release, bench.clock()):
        return waiting.expire(bench, release, who="make-safe")
    if release.state not in (ReleaseState.RUNNING, ReleaseState.WAITING):
        return f"{release.id} is {release.state}: nothing to do"
    transitions.make_safe(bench, release, who="make-safe", reason=f"its flow run {flow_run_id} died")
    return f"{release.id} is INTERRUPTED at share 0 and can be resumed"
