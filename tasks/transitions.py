"""The changes of traffic that a release makes: place, grant, withdraw, promote, reject, make safe.

Each can be killed anywhere and run again. What is decided (a promotion, a rollback) goes through
`tasks.changes`; shares are leases and need no undoing.
"""

from __future__ import annotations

import math

from evals.ramp import grantable_bp
from serving.endpoint import Slot
from serving.errors import Fenced, LeaseExpired, NotHealthy, Refused
from serving.records import EndpointRow, ReleaseRow, ReleaseState, Stage
from serving.versions import model_uri
from tasks import news
from tasks.bench import Bench
from tasks.changes import (
    PROMOTE,
    ROLL_BACK,
    Change,
    decide,
    finish,
    follow_at,
    follow_journal,
    next_generation,
    without_intent,
)


def place(bench: Bench, release: ReleaseRow, *, first: bool, word: str = "placed") -> EndpointRow:
    """Put the release's version into its slot at zero share, healthy and warm; the trail has it as `word`.

    A new generation fences whatever an earlier run of this release may still do. The version
    that kept the slot warm until now (the champion before the last) is retired. `first` places
    an endpoint's first champion into the default slot, which nothing serves yet.
    """
    row = without_intent(bench)
    _check_mine(bench, row, release)
    slot = row.default if first else row.default.sibling
    row = next_generation(
        bench,
        row,
        salt=release.id,
        release_id=release.id,
        share_bp=0,
        until=0.0,
        keep_until=0.0,
        **({} if first else {f"{slot.value}_version": ""}),
    )
    if bench.endpoint.describe().versions.get(slot, "") not in ("", release.version):
        bench.endpoint.retire(slot)
    bench.endpoint.deploy(slot, release.version, uri=model_uri(bench.policy.model, release.version))
    if not first:
        row = next_generation(bench, row, **{f"{slot.value}_version": release.version})
    bench.journal.record(
        bench.name,
        word,
        who=release.owner,
        now=bench.clock(),
        release_id=release.id,
        version=release.version,
        slot=slot.value,
        generation=row.generation,
    )
    return row


def grant(bench: Bench, row: EndpointRow, share_percent: float) -> EndpointRow:
    """Give the candidate a share for one lease, or renew it. Raises `Fenced` or `LeaseExpired`.

    A lease that ran out is not renewed: call `withdraw`, look at the candidate afresh, and grant
    again.
    """
    now = bench.clock()
    current = bench.row()
    if current.generation == row.generation and current.share_bp > 0 and current.until <= now:
        raise LeaseExpired(
            f"{bench.name}: the lease on {current.share_bp / 100:g}% ran out {now - current.until:.1f} s "
            "ago; the gateway has returned all traffic to the champion"
        )
    share_bp = grantable_bp(share_percent, bench.endpoint.capabilities.share_step_bp)
    row = bench.journal.change(
        bench.name,
        generation=row.generation,
        now=now,
        share_bp=share_bp,
        until=float(math.ceil(now + bench.policy.canary.lease_s)) if share_bp else 0.0,
    )
    return follow_at(bench, row)


def withdraw(bench: Bench, row: EndpointRow) -> EndpointRow:
    """Take the candidate's share back without deciding anything: 0 under the same generation."""
    row = bench.journal.change(
        bench.name, generation=row.generation, now=bench.clock(), share_bp=0, until=0.0
    )
    return follow_at(bench, row)


def promote(bench: Bench, release: ReleaseRow, *, who: str, reason: str, first: bool = False) -> EndpointRow:
    """Make the release's version the default: decided here, once, under a new generation."""
    row = without_intent(bench)
    _check_mine(bench, row, release)
    if row.release_id != release.id:
        raise Fenced(
            f"{bench.name} now belongs to release {row.release_id}, not to {release.id}. Nothing changed."
        )
    slot = row.default if first else row.default.sibling
    check_alive(bench, slot, release.version)
    now = bench.clock()
    change = Change(
        kind=PROMOTE,
        release_id=release.id,
        winner=release.version,
        loser="" if first else row.champion,
        state=ReleaseState.PROMOTED.value,
        reason=reason,
        who=who,
        stage=Stage.EVALUATE.value if first else Stage.CANARY.value,
        decided_at=now,
    )
    decide(
        bench,
        row,
        change,
        default_slot=slot.value,
        keep_until=now + bench.policy.keep_previous_s,
        **{f"{slot.value}_version": release.version},
    )
    return finish(bench)


def reject(
    bench: Bench, release: ReleaseRow, *, state: ReleaseState, who: str, reason: str, at: float
) -> EndpointRow:
    """Take an open release off the road: share 0 at once, then aliases, tags and the slot.

    `at` is when the decision fell. The default does not change: during a ramp it still is the
    champion. Used for a FAIL verdict (REJECTED), a person's abort (ABORTED) and a person's rollback
    of a ramp (ROLLED_BACK). Raises `Fenced` for a release that has ended otherwise.
    """
    row = without_intent(bench)
    now = bench.journal.release(release.id)
    if now is None or now.state.final:
        raise Fenced(f"{release.id} has ended already. Nothing was changed.")
    if state is ReleaseState.REJECTED and now.owner != release.owner:
        raise Fenced(f"{release.id} is no longer run by this flow. Nothing was changed.")
    change = Change(
        kind=ROLL_BACK,
        release_id=release.id,
        winner=row.champion,
        loser=release.version,
        state=state.value,
        reason=reason,
        who=who,
        stage=release.stage.value,
        decided_at=at,
    )
    decide(bench, row, change)
    return finish(bench)


def return_to_previous(
    bench: Bench, release: ReleaseRow | None, *, who: str, reason: str, at: float, proven: str
) -> EndpointRow:
    """Undo a promotion: the warm previous champion becomes the default again.

    Raises `Fenced` where the other slot holds another version than the one that was `proven` to answer: a
    release may have put its candidate there meanwhile. `Refused` where it does not stand ready.
    """
    row = without_intent(bench)
    slot = row.default.sibling
    previous = row.version_in(slot)
    if previous != proven:
        raise Fenced(
            f"{bench.name}: slot {slot} holds version {previous or 'none'} by now, not {proven}. "
            "Nothing was changed."
        )
    healthy = any(replica.healthy for replica in bench.endpoint.describe().replicas.get(slot, ()))
    if not healthy:
        raise Refused(
            f"{bench.name}: the previous version {previous} is not healthy; traffic stays on version "
            f"{row.champion}. Next: interlock logs, then a person decides"
        )
    change = Change(
        kind=ROLL_BACK,
        release_id=release.id if release else "",
        winner=previous,
        loser=row.champion,
        state=ReleaseState.ROLLED_BACK.value,
        reason=reason,
        who=who,
        stage="watch",
        decided_at=at,
    )
    decide(bench, row, change, default_slot=slot.value, keep_until=0.0)
    return finish(bench)


def make_safe(
    bench: Bench,
    release: ReleaseRow,
    *,
    who: str,
    reason: str,
    state: ReleaseState = ReleaseState.INTERRUPTED,
) -> EndpointRow:
    """Share 0 under a new generation, release INTERRUPTED or HELD: nothing is rejected, all can resume.

    A release that somebody else has claimed since `release` was read is left alone.
    """
    now = bench.journal.release(release.id)
    if now is None or now.state.final or now.owner not in ("", release.owner):
        return bench.row()
    row = bench.row()
    if row.intent is not None:
        return finish(bench)
    if row.release_id == release.id and row.champion:
        row = bench.journal.change(
            bench.name,
            generation=row.generation,
            new_generation=row.generation + 1,
            now=bench.clock(),
            share_bp=0,
            until=0.0,
        )
        follow_journal(bench)
    bench.journal.end_release(release.id, state=state, reason=reason, now=bench.clock(), owner=now.owner)
    bench.journal.record(
        bench.name, "made safe", who=who, now=bench.clock(), release_id=release.id, reason=reason
    )
    news.made_safe(bench, now, state, reason)
    return bench.row()


def check_alive(bench: Bench, slot: Slot, version: str) -> None:
    """Raise `NotHealthy` unless the slot holds the version with every replica healthy."""
    state = bench.endpoint.describe()
    replicas = state.replicas.get(slot, ())
    if state.versions.get(slot) != version or not replicas or not all(one.healthy for one in replicas):
        raise NotHealthy(
            f"{bench.name}: version {version} in slot {slot} is not healthy on all its replicas. "
            f"Next: interlock logs, then interlock release {bench.name} {version}"
        )


def _check_mine(bench: Bench, row: EndpointRow, release: ReleaseRow) -> None:
    """Raise `Fenced` unless the release is still run by its owner, against the champion that serves.

    `row` was read before: whatever changes after it fails the compare-and-set on its generation.
    """
    now = bench.journal.release(release.id)
    if now is None or now.state.final or now.owner != release.owner or now.owner_until < bench.clock():
        raise Fenced(f"{release.id} is no longer run by this flow. Nothing was changed.")
    if row.champion != release.champion:
        raise Fenced(
            f"{bench.name}: the champion is version {row.champion or 'none'} by now, and {release.id} was "
            f"judged against {release.champion or 'none'}. Next: run it again, it begins afresh"
        )
