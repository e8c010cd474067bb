"""Decided changes: how they stand in the journal, reach the platform, and are told to MLflow.

The order is always the same: intent into the journal (under a new generation, which fences
everything older), then the platform, then MLflow's aliases and tags, then the release's state,
then the intent is taken back. Once the intent is written the change is decided: whoever comes
next (the same flow run again, `reconcile`, a person) finishes it forward with `finish`. Only the
platform itself can still refuse (a replica died in between): then the change stands down, and what
served before serves on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.endpoint import Slot
from serving.errors import Fenced, Refused
from serving.fence import effective
from serving.records import EndpointRow, ReleaseState
from tasks import news
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.registry import CANDIDATE, CHAMPION, PREVIOUS

_LOG = logging.getLogger("interlock.changes")
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


def decide(bench: Bench, row: EndpointRow, change: Change, **values: Any) -> None:
    """Write a change's intent under a new generation and move the traffic: one CAS, one map command.

    Raises `Refused` where the platform cannot; the change has stood down then.
    """
    row = bench.journal.change(
        bench.name,
        generation=row.generation,
        new_generation=row.generation + 1,
        now=bench.clock(),
        share_bp=0,
        until=0.0,
        intent=change.as_dict(),
        **values,
    )
    try:
        follow_journal(bench)
    except Refused as error:
        raise _stand_down(bench, row, change, error) from error
    bench.journal.record(
        bench.name,
        "decided",
        who=change.who,
        now=bench.clock(),
        **{key: value for key, value in change.as_dict().items() if key != "who"},
    )
    news.decided(bench, change)


def finish(bench: Bench) -> EndpointRow:
    """Carry an intended change through to its end. Without an intent there is nothing to do.

    Raises `Refused` where the platform cannot do it: by then the change has stood down. Raises
    `TransientError` where something is away: the intent stays, and the next call goes on.
    """
    row = bench.row()
    if row.intent is None:
        return row
    change = Change.of(row.intent)
    try:
        follow_journal(bench)
    except Refused as error:
        raise _stand_down(bench, row, change, error) from error
    news.decided(bench, change)  # where the run that decided it died before it could say so
    if ReleaseState(change.state).final:
        _publish(bench, row, change)
    if change.release_id:
        bench.journal.end_release(
            change.release_id,
            state=ReleaseState(change.state),
            reason=change.reason,
            now=bench.clock(),
            decided_at=change.decided_at,
            decided_stage=change.stage,
        )
    try:
        row = _take_intent_back(bench, row, change)
    except Fenced:
        if bench.row().intent == row.intent:
            raise
        return bench.row()  # somebody else finished it meanwhile
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


def supersede(bench: Bench, *, who: str, reason: str) -> Change | None:
    """Turn a promotion that is decided but not finished into its rollback; traffic first.

    None where there is no such promotion. A person's rollback must not have to wait until
    everything about the promotion has been told to MLflow.
    """
    row = bench.row()
    if row.intent is None or row.intent["kind"] != PROMOTE:
        return None
    old = Change.of(row.intent)
    slot = slot_of(row, old.loser) if old.loser else None
    if slot is None:
        return None
    change = Change(
        kind=ROLL_BACK,
        release_id=old.release_id,
        winner=old.loser,
        loser=old.winner,
        state=ReleaseState.ROLLED_BACK.value,
        reason=reason,
        who=who,
        stage="promote",
        decided_at=bench.clock(),
    )
    decide(bench, row, change, default_slot=slot.value)
    return change


def without_intent(bench: Bench) -> EndpointRow:
    """The endpoint once every earlier change is finished."""
    row = bench.row()
    return finish(bench) if row.intent is not None else row


def slot_of(row: EndpointRow, version: str) -> Slot | None:
    """Which slot holds a version."""
    return next((slot for slot in Slot if row.version_in(slot) == version), None)


def next_generation(bench: Bench, row: EndpointRow, **values: Any) -> EndpointRow:
    """Change the endpoint under a new generation and make the platform follow."""
    row = bench.journal.change(
        bench.name, generation=row.generation, new_generation=row.generation + 1, now=bench.clock(), **values
    )
    return follow_at(bench, row)


def follow_at(bench: Bench, row: EndpointRow) -> EndpointRow:
    """Follow the journal, and say so if somebody newer has moved it meanwhile."""
    after = follow_journal(bench)
    if after.generation != row.generation:
        raise Fenced(f"{bench.name}: generation {after.generation} came while {row.generation} was applied.")
    return after


def _take_intent_back(bench: Bench, row: EndpointRow, change: Change) -> EndpointRow:
    """The version that lost leaves its slot (who wants it back releases it again); then all is done."""
    slot = slot_of(row, change.loser) if change.kind == ROLL_BACK and change.loser else None
    if change.kind == ROLL_BACK and not row.champion:
        # A first champion that was placed to be judged: it stands in the default slot, which serves nothing.
        if bench.endpoint.describe().versions.get(row.default) == change.loser:
            bench.endpoint.retire(row.default)
    elif slot is not None and slot is not row.default:
        if bench.endpoint.describe().versions.get(slot) == change.loser:
            bench.endpoint.retire(slot)
        row = next_generation(bench, row, **{f"{slot.value}_version": ""})
    return bench.journal.change(bench.name, generation=row.generation, now=bench.clock(), intent=None)


def _stand_down(bench: Bench, row: EndpointRow, change: Change, error: Refused) -> Refused:
    """Undo a change that the platform cannot do: what served before serves on. The error to raise."""
    values: dict[str, Any] = {"intent": None}
    before = slot_of(row, change.loser) if change.loser else None
    if change.kind == PROMOTE and not change.loser:
        values[f"{row.default.value}_version"] = ""
    elif before is not None and (change.kind == PROMOTE or row.champion == change.winner):
        values["default_slot"] = before.value
        other = before.sibling
        if bench.endpoint.describe().versions.get(other) != row.version_in(other):
            values[f"{other.value}_version"] = ""  # what should have served is not even there
    next_generation(bench, row, **values)
    if change.kind == PROMOTE:
        bench.journal.end_release(
            change.release_id, state=ReleaseState.INTERRUPTED, reason=str(error), now=bench.clock()
        )
    alert(
        bench,
        "critical",
        f"the platform refused the {change.kind} of version {change.winner}; what served before serves on",
        numbers={"reason": str(error)},
        next_step=f"interlock status {bench.name}, interlock logs; then decide again",
        key=f"stood down {change.kind} {change.winner}",
    )
    bench.journal.record(
        bench.name,
        "stood down",
        who=change.who,
        now=bench.clock(),
        release_id=change.release_id,
        kind=change.kind,
        reason=str(error),
    )
    return Refused(
        f"{bench.name}: the platform refused the {change.kind} ({error}); what served before serves on."
    )


def _publish(bench: Bench, row: EndpointRow, change: Change) -> None:
    """Tell MLflow. What it refuses for good is noted and does not hold the change up."""
    try:
        if change.kind == PROMOTE:
            _publish_promotion(bench, row, change)
        else:
            _publish_rollback(bench, row, change)
    except Refused as error:
        _LOG.warning("not published: %s", error)
        bench.journal.record(
            bench.name,
            "not published",
            who=change.who,
            now=bench.clock(),
            release_id=change.release_id,
            reason=str(error),
        )


def _still_intended(bench: Bench, row: EndpointRow) -> None:
    """A finisher that slept must not tell MLflow what is no longer so."""
    if bench.row().intent != row.intent:
        raise Fenced(f"{bench.name}: this change was finished or superseded by somebody else.")


def _publish_promotion(bench: Bench, row: EndpointRow, change: Change) -> None:
    model, registry = bench.policy.model, bench.registry
    if change.loser:
        _still_intended(bench, row)
        registry.point(model, PREVIOUS, change.loser)
    _still_intended(bench, row)
    registry.point(model, CHAMPION, change.winner)
    registry.unpoint(model, CANDIDATE, change.winner)
    registry.tag(model, change.winner, _outcome_tags(bench, change, "promoted"))


def _publish_rollback(bench: Bench, row: EndpointRow, change: Change) -> None:
    model, registry = bench.policy.model, bench.registry
    if change.winner:
        _still_intended(bench, row)
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
