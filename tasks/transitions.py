"""The changes of traffic and of who is champion. Each can be killed anywhere and run again.

The order is always the same: intent into the journal (under a new generation, which fences
everything older), then the platform, then MLflow's aliases and tags, then the release's state,
then the intent is taken back. Once the intent is written the change is decided: whoever comes
next (the same flow run again, `reconcile`, a person) finishes it forward with `finish`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.endpoint import SHARE_SCALE, Slot
from serving.errors import Fenced, LeaseExpired, Refused
from serving.fence import effective
from serving.records import EndpointRow, ReleaseRow, ReleaseState, Stage
from tasks.bench import Bench
from tasks.registry import CANDIDATE, CHAMPION, PREVIOUS

PROMOTE = "promote"
ROLL_BACK = "rollback"


@dataclass(frozen=True, slots=True)
class Change:
    """A decided change of an endpoint, as it stands in the journal until it is done.

    `loser` is the version that goes (or "" for a first champion), `winner` the one that serves
    afterwards; `decided_at` is in seconds since the epoch.
    """

    kind: str
    release_id: str
    winner: str
    loser: str
    state: str
    reason: str
    who: str
    stage: str
    decided_at: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, intent: Mapping[str, Any]) -> Change:
        """The inverse of `as_dict`."""
        return cls(**intent)


def follow_journal(bench: Bench) -> EndpointRow:
    """Make the platform do what the journal says, and go on until the journal has not moved.

    A process that was stopped in between may write an older route; its own loop, or that of
    whoever changed the journal, writes the newest again at once.
    """
    while True:
        row = bench.row()
        if not row.champion:
            return row  # it never served: there is no traffic to move
        try:
            # A grant that ran out is applied as what it is by now: nothing.
            bench.endpoint.apply(effective(row.route, bench.clock()))
        except Fenced:
            if bench.row().generation == row.generation:
                raise
        after = bench.row()
        if (after.generation, after.share_bp, after.until) == (row.generation, row.share_bp, row.until):
            return after


def place(bench: Bench, release: ReleaseRow, *, first: bool) -> EndpointRow:
    """Put the release's version into its slot at zero share, healthy and warm.

    A new generation fences whatever an earlier run of this release may still do. The version
    that kept the slot warm until now (the champion before the last) is retired. `first` places
    an endpoint's first champion into the default slot, which nothing serves yet.
    """
    row = _without_intent(bench)
    slot = row.default if first else row.default.sibling
    row = _next_generation(
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
    bench.endpoint.deploy(slot, release.version, uri=f"models:/{bench.policy.model}/{release.version}")
    if not first:
        row = _next_generation(bench, row, **{f"{slot.value}_version": release.version})
    bench.journal.record(
        bench.name,
        "placed",
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
    share_bp = round(share_percent / 100 * SHARE_SCALE)
    row = bench.journal.change(
        bench.name,
        generation=row.generation,
        now=now,
        share_bp=share_bp,
        until=float(math.ceil(now + bench.policy.canary.lease_s)) if share_bp else 0.0,
    )
    return _follow_at(bench, row)


def withdraw(bench: Bench, row: EndpointRow) -> EndpointRow:
    """Take the candidate's share back without deciding anything: 0 under the same generation."""
    row = bench.journal.change(
        bench.name, generation=row.generation, now=bench.clock(), share_bp=0, until=0.0
    )
    return _follow_at(bench, row)


def promote(bench: Bench, release: ReleaseRow, *, who: str, reason: str, first: bool = False) -> EndpointRow:
    """Make the release's version the default: decided here, once, under a new generation."""
    row = _without_intent(bench)
    if row.release_id != release.id:
        raise Fenced(
            f"{bench.name} now belongs to release {row.release_id}, not to {release.id}. Nothing changed."
        )
    slot = row.default if first else row.default.sibling
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
    champion. Used for a FAIL verdict (REJECTED) and for a person's abort (ABORTED).
    """
    row = _without_intent(bench)
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
    bench: Bench, release: ReleaseRow | None, *, who: str, reason: str, at: float
) -> EndpointRow:
    """Undo a promotion: the warm previous champion becomes the default again.

    Raises `Refused` where no previous version stands ready in the other slot.
    """
    row = _without_intent(bench)
    slot = row.default.sibling
    previous = row.version_in(slot)
    if not previous:
        raise Refused(
            f"{bench.name}: no previous version is warm. Next: interlock release {bench.name} VERSION"
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
    decide(bench, row, change, default_slot=slot.value)
    return finish(bench)


def make_safe(bench: Bench, release: ReleaseRow, *, who: str, reason: str) -> EndpointRow:
    """Share 0 under a new generation, release INTERRUPTED: nothing is rejected, all can resume."""
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
    bench.journal.end_release(release.id, state=ReleaseState.INTERRUPTED, reason=reason, now=bench.clock())
    bench.journal.record(
        bench.name, "made safe", who=who, now=bench.clock(), release_id=release.id, reason=reason
    )
    return bench.row()


def decide(bench: Bench, row: EndpointRow, change: Change, **values: Any) -> None:
    """Write a change's intent under a new generation and move the traffic: one CAS, one map command."""
    bench.journal.change(
        bench.name,
        generation=row.generation,
        new_generation=row.generation + 1,
        now=bench.clock(),
        share_bp=0,
        until=0.0,
        intent=change.as_dict(),
        **values,
    )
    follow_journal(bench)
    bench.journal.record(
        bench.name,
        "decided",
        who=change.who,
        now=bench.clock(),
        **{key: value for key, value in change.as_dict().items() if key != "who"},
    )


def finish(bench: Bench) -> EndpointRow:
    """Carry an intended change through to its end. Without an intent there is nothing to do."""
    row = bench.row()
    if row.intent is None:
        return row
    change = Change.of(row.intent)
    follow_journal(bench)
    if change.kind == PROMOTE:
        _publish_promotion(bench, change)
    else:
        _publish_rollback(bench, change)
    if change.release_id:
        bench.journal.end_release(
            change.release_id,
            state=ReleaseState(change.state),
            reason=change.reason,
            now=bench.clock(),
            decided_at=change.decided_at,
            decided_stage=change.stage,
        )
    slot = _slot_of(row, change.loser) if change.kind == ROLL_BACK and change.loser else None
    if slot is not None and slot is not row.default:
        # The version that lost leaves its slot; who wants it back releases it again.
        bench.endpoint.retire(slot)
        row = _next_generation(bench, row, **{f"{slot.value}_version": ""})
    row = bench.journal.change(bench.name, generation=row.generation, now=bench.clock(), intent=None)
    bench.journal.record(
        bench.name,
        "finished",
        who=change.who,
        now=bench.clock(),
        release_id=change.release_id,
        kind=change.kind,
        generation=row.generation,
    )
    return row


def _publish_promotion(bench: Bench, change: Change) -> None:
    model, registry = bench.policy.model, bench.registry
    if change.loser:
        registry.point(model, PREVIOUS, change.loser)
    registry.point(model, CHAMPION, change.winner)
    registry.unpoint(model, CANDIDATE, change.winner)
    registry.tag(model, change.winner, _outcome_tags(bench, change, "promoted"))


def _publish_rollback(bench: Bench, change: Change) -> None:
    model, registry = bench.policy.model, bench.registry
    if change.winner:
        registry.point(model, CHAMPION, change.winner)
        registry.unpoint(model, PREVIOUS, change.winner)
    registry.unpoint(model, CANDIDATE, change.loser)
    registry.tag(model, change.loser, _outcome_tags(bench, change, change.state.lower()))


def _outcome_tags(bench: Bench, change: Change, outcome: str) -> dict[str, str]:
    return {
        f"interlock.{bench.name}.outcome": outcome,
        f"interlock.{bench.name}.reason": change.reason,
        f"interlock.{bench.name}.release": change.release_id,
    }


def _next_generation(bench: Bench, row: EndpointRow, **values: Any) -> EndpointRow:
    """Change the endpoint under a new generation and make the platform follow."""
    row = bench.journal.change(
        bench.name, generation=row.generation, new_generation=row.generation + 1, now=bench.clock(), **values
    )
    return _follow_at(bench, row)


def _slot_of(row: EndpointRow, version: str) -> Slot | None:
    return next((slot for slot in Slot if row.version_in(slot) == version), None)


def _without_intent(bench: Bench) -> EndpointRow:
    """The endpoint once every earlier change is finished."""
    row = bench.row()
    return finish(bench) if row.intent is not None else row


def _follow_at(bench: Bench, row: EndpointRow) -> EndpointRow:
    """Follow the journal, and say so if somebody newer has moved it meanwhile."""
    after = follow_journal(bench)
    if after.generation != row.generation:
        raise Fenced(f"{bench.name}: generation {after.generation} came while {row.generation} was applied.")
    return after
