"""The stage before people and users: the version on the staging endpoint, smoke-tested and under load.

Staging is the same code, gateway and model under a name of its own, with the policy's overlay. It
stands only while it is needed. Every rate that was measured is kept in the journal, so a release
that is resumed measures no rate twice.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.environments import STAGING, policy_in
from configs.policy import Policy
from configs.settings import Settings
from evals.load import CONCURRENCY, LoadStep
from evals.verdict import Finding, Outcome, Verdict, conclude
from serving.atomic import timed_lock
from serving.endpoint import Route, Slot
from serving.errors import Refused, SetupError
from serving.gateway.keys import Keys
from serving.gateway.limits import limits_of
from serving.records import LookRow, Stage
from serving.versions import model_uri
from tasks import load_run
from tasks.bench import Bench
from tasks.release import Release

_LOG = logging.getLogger("interlock.staging")
_STAGE = Stage.STAGE.value
_SMOKE_REQUESTS = 5
_WHO = "load test"
Note = Callable[[int, LoadStep, Verdict], None]


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What staging showed of a version."""

    verdict: Verdict
    steps: tuple[LoadStep, ...]


def staging_of(bench: Bench) -> Bench:
    """The staging endpoint's tools. Raises `Refused` where the policy has no staging, or not here."""
    if STAGING not in bench.policy.environments:
        raise Refused(
            f"{bench.name}: its policy has no environment `{STAGING}`. Next: add `environments: {{staging: "
            "{load_test: {rate_per_s: ...}}}` to it, then interlock validate"
        )
    policy = policy_in(bench.policy, STAGING)
    if policy.platform != "local":
        raise SetupError(
            f"{policy.endpoint}: staging needs the local gateway, its platform is {policy.platform}. "
            "Next: environments.staging.platform: local"
        )
    if policy.load_test is not None:
        # The load comes from one tenant, and must meet the version's limits, not the tenant's.
        most = round(2 * policy.load_test.rate_per_s * policy.load_test.search_max_rate) + 1
        access = policy.access.model_copy(update={"rate_per_s": max(policy.access.rate_per_s, most)})
        policy = policy.model_copy(update={"access": access})
    return open_staging(policy, bench)


def open_staging(policy: Policy, bench: Bench) -> Bench:
    """A bench on staging's own endpoint with the release's registry, runs and clock."""
    return Bench(
        policy,
        bench.settings,
        registry=bench.registry,
        runs=bench.runs,
        messenger=bench.messenger,
        clock=bench.clock,
        sleep=bench.sleep,
    )


def run_staging(release: Release) -> Verdict:
    """The release's stage: rehearse the version, keep every number in the journal and in its run."""
    bench, there = release.bench, staging_of(release.bench)
    looks = bench.journal.looks(release.row.id, _STAGE)
    known = [LoadStep.from_dict(look.stats) for look in looks]

    def note(number: int, step: LoadStep, verdict: Verdict) -> None:
        release.check()
        now, rate = bench.clock(), f"{step.rate:.6g}"
        bench.journal.add_look(LookRow(release.row.id, _STAGE, number, now, "", rate, {**step.as_dict()}))
        release.trail.numbers(load_numbers(step), now=now, step=number)
        release.progress({"doing": f"load test, {verdict.reason}", "look": number})

    release.progress({"doing": f"starts version {release.version} on {there.name}"})
    rehearsed = rehearse(there, release.version, production=bench.name, known=known, note=note)
    bench.journal.record(
        there.name,
        f"staging {rehearsed.verdict.outcome}",
        who=release.row.owner,
        now=bench.clock(),
        release_id=release.row.id,
        version=release.version,
        reason=rehearsed.verdict.reason,
    )
    return rehearsed.verdict


def load_by_hand(settings: Settings, endpoint: str, version: str, note: Note) -> Rehearsal:
    """Load-test a version (the champion by default) on staging, outside of any release.

    Raises `Refused` where staging is in use, and where there is nothing to test.
    """
    bench = Bench.open(endpoint, settings)
    there = staging_of(bench)
    if there.policy.load_test is None:
        raise Refused(f"{there.name}: its policy has no `load_test`. Next: environments.staging.load_test")
    chosen = version or bench.row().champion
    if not chosen:
        raise Refused(f"{endpoint}: it never served. Next: interlock load-test {endpoint} VERSION")
    rehearsed = rehearse(there, chosen, production=endpoint, known=(), note=note)
    bench.journal.record(
        there.name,
        f"load test {rehearsed.verdict.outcome}",
        who=_WHO,
        now=bench.clock(),
        version=chosen,
        reason=rehearsed.verdict.reason,
    )
    return rehearsed


def rehearse(
    there: Bench, version: str, *, production: str, known: Sequence[LoadStep], note: Note
) -> Rehearsal:
    """The version up in staging, asked a few requests, then under load; taken down whatever happens.

    Raises `Refused` while another process uses the endpoint.
    """
    with _use(there) as is_mine:
        if not is_mine:
            raise Refused(f"{there.name} is in use by another release or load test. Next: try again later")
        return _rehearse(there, version, production, known, note)


def clear(there: Bench) -> bool:
    """Take down what a rehearsal that was killed left behind. Returns whether there was something."""
    with _use(there) as is_mine:
        is_left = (
            any(there.endpoint.describe().versions.values())
            or _captures(there).exists()
            or Keys(there.settings).every(_tenant(there))
        )
        if not is_mine or not is_left:
            return False
        _take_down(there)
        return True


def _take_down(there: Bench) -> None:
    """The endpoint goes, its key, and what it captured: copies of rows, or of production's requests."""
    keys = Keys(there.settings)
    if keys.every(_tenant(there)):
        keys.revoke(_tenant(there))
    there.endpoint.dismantle()
    shutil.rmtree(_captures(there), ignore_errors=True)


def _tenant(there: Bench) -> str:
    """Who the load test is to the gateway."""
    return f"load-test-{there.name}"


def _captures(there: Bench) -> Path:
    return there.settings.captures_dir / there.name


def _use(there: Bench) -> AbstractContextManager[bool]:
    """A lock that ends with its process."""
    return timed_lock(there.settings.state / "staging" / f"{there.name}.lock", wait_s=0)


def _rehearse(
    there: Bench, version: str, production: str, known: Sequence[LoadStep], note: Note
) -> Rehearsal:
    try:
        slot = _stand_up(there, version)
        bodies = load_run.payloads(there, production)
        smoke = _smoke(there, slot, bodies)
        if not smoke.passed or there.policy.load_test is None:
            return Rehearsal(smoke, ())
        verdict, steps = _under_load(there, bodies, known, note)
        found = Verdict(verdict.outcome, verdict.reason, (*smoke.findings, *verdict.findings))
        return Rehearsal(found, tuple(steps))
    finally:
        _take_down(there)


def with_measured_limit(policy: Policy, verdicts: Any) -> Policy:
    """The policy with the concurrency that staging measured, where that is more than its own.

    Never less: the load test's requests come evenly, users' do not, and what a burst finds closed here waits
    in the gateway while a replica has predictions free, or a batch has room.
    """
    if policy.replicas.gateway_limit is not None or _STAGE not in verdicts:
        return policy
    found = [one for one in verdicts[_STAGE]["findings"] if one["metric"] == CONCURRENCY]
    if not found or found[0]["candidate"] <= limits_of(policy).concurrency:
        return policy
    replicas = policy.replicas.model_copy(update={"gateway_limit": int(found[0]["candidate"])})
    return policy.model_copy(update={"replicas": replicas})


def load_numbers(step: LoadStep) -> dict[str, float]:
    """A rate's numbers under the names that MLflow shows."""
    return {
        "load/rate_per_s": step.rate,
        "load/sent_per_s": step.sent_rate,
        "load/p50_ms": step.p50,
        "load/p95_ms": step.p95,
        "load/p99_ms": step.p99,
        "load/failed_share": step.failed / max(1, step.requests),
        "load/in_flight": step.in_flight,
    }


def _stand_up(there: Bench, version: str) -> Slot:
    """The version as staging's default. An earlier rehearsal that was killed may have left it there."""
    state = there.endpoint.describe()
    route, uri = state.route, model_uri(there.policy.model, version)
    held = next((slot for slot, one in state.versions.items() if one == version), None)
    slot = held or (route.default.sibling if route else Slot.BLUE)
    there.endpoint.deploy(slot, version, uri=uri)
    if route is None or route.default is not slot or route.default_version != version:
        generation = route.generation + 1 if route else 1
        there.endpoint.apply(Route(there.name, generation, slot, version))
    return slot


def _smoke(there: Bench, slot: Slot, bodies: Sequence[str]) -> Verdict:
    """A few requests, one after the other: every one of them must be answered."""
    asked = bodies[:_SMOKE_REQUESTS]
    path, timeout_s = load_run.path_asked(there.policy), there.policy.replicas.request_timeout_s
    replies = [
        there.endpoint.invoke(slot, path, body.encode(), content_type="application/json", timeout_s=timeout_s)
        for body in asked
    ]
    bad = [reply for reply in replies if reply.status != 200]
    if bad:
        said = bad[0].body.decode(errors="replace")[:200]
        reason = f"smoke test: {len(bad)} of {len(asked)} requests were answered {bad[0].status}: {said}"
        return conclude((Finding("smoke", Outcome.FAIL, reason, units=len(asked)),))
    return conclude((Finding("smoke", Outcome.PASS, f"{len(asked)} requests answered", units=len(asked)),))


def _under_load(
    there: Bench, bodies: Sequence[str], known: Sequence[LoadStep], note: Note
) -> tuple[Verdict, list[LoadStep]]:
    """The search through the gateway, with a key that goes with the endpoint."""
    policy = there.policy
    assert policy.load_test is not None
    target = load_run.Target(
        f"{there.settings.gateway_url}/{there.name}",
        load_run.path_asked(policy),
        Keys(there.settings).create(_tenant(there)),
        policy.replicas.request_timeout_s,
    )
    send = load_run.locust_sender(target, bodies, policy.load_test)
    return load_run.search(policy, send, known=known, note=note)
