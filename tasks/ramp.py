"""The canary: grants shares, looks, and lets the evidence decide.

One loop: read what finished since the last look, count it, let the judge decide, store the
look, then renew the lease, take the next step, or stop. The lease is renewed here and nowhere
else, so a loop that hangs or dies gives the traffic back by doing nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evals.canary import CanaryJudge, Look
from evals.looks import LatencyThresholds, StoredLook
from evals.ramp import next_step
from evals.units import UnitTracker
from evals.verdict import Outcome, Verdict
from serving.endpoint import Endpoint, Slot
from serving.errors import LeaseExpired, TransientError
from serving.records import EndpointRow, LookRow, Stage
from tasks import news
from tasks.release import Release
from tasks.transitions import check_alive, grant, withdraw

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger("interlock.ramp")
_STAGE = Stage.CANARY.value
BASELINE_REQUESTS_MIN = 200
"""Champion requests before the canary from which the latency thresholds are taken."""
_BASELINE_FRESH = 500
_BASELINE_FRESH_S = 5.0
_PATIENCE_LEASES = 4
_PART_ROWS = 50_000


@dataclass(slots=True)
class _Ramp:
    """Where the ramp stands: everything the loop carries from look to look."""

    row: EndpointRow
    slot: Slot
    judge: CanaryJudge
    tracker: UnitTracker
    cursor: str
    number: int
    step: int
    step_since: float
    first_generation: int
    requests_at_step: int = 0
    asked: bool = False
    trouble_since: float | None = None
    rejected: Verdict | None = None
    is_stale: bool = False


class _Past:
    """Requests of looks already taken, read once more a part at a time: a canary may last for days."""

    def __init__(self, endpoint: Endpoint, cursor: str) -> None:
        self._endpoint = endpoint
        seen = endpoint.observations(cursor, limit=_PART_ROWS)
        self._cursor, self._part = seen.cursor, seen.frame

    def take(self, count: int) -> pd.DataFrame:
        """The next `count` requests in the log's order; fewer where the log is gone."""
        import pandas as pd

        while len(self._part) < count:
            seen = self._endpoint.observations(self._cursor, limit=_PART_ROWS)
            if seen.cursor == self._cursor:
                break
            self._cursor = seen.cursor
            self._part = pd.concat([self._part, seen.frame]) if len(self._part) else seen.frame
        taken, self._part = self._part.iloc[:count], self._part.iloc[count:]
        return taken


def run_canary(release: Release, row: EndpointRow) -> Verdict:
    """Ramp the placed candidate up to the soak and return PASS, FAIL or ERROR.

    `row` is the endpoint as `place` left it. The latency thresholds come from the champion's
    requests since then.
    Raises `Fenced`, `Aborted`; every other exception leaves the release INTERRUPTED and the
    share to its lease.
    """
    ramp = _restore(release, row)
    if ramp.rejected is not None:
        return ramp.rejected  # an earlier run saw the evidence turn and died before it acted
    canary = release.bench.policy.canary
    while release.check().request == "pause":
        release.bench.sleep(canary.look_every_s)
    _enter_share(release, ramp)
    while True:
        release.bench.sleep(canary.look_every_s)
        is_paused = release.check().request == "pause"
        try:
            if ramp.is_stale:
                _rebuild(release, ramp)
                if ramp.rejected is not None:
                    return ramp.rejected
            look = _look(release, ramp)
            outcome = look.verdict.outcome
            if outcome is not Outcome.INCONCLUSIVE and not (outcome is Outcome.PASS and is_paused):
                return look.verdict
            if look.advance.outcome is Outcome.PASS and not is_paused:
                _advance(release, ramp, look)
            ramp.row = grant(release.bench, ramp.row, canary.steps[ramp.step])
            _ask_human_when_stalled(release, ramp, look)
            ramp.trouble_since = None
        except LeaseExpired as error:
            _re_enter(release, ramp, error)
        except TransientError as error:
            _bear(release, ramp, error)
            ramp.is_stale = True


def _look(release: Release, ramp: _Ramp) -> Look:
    bench, now = release.bench, release.bench.clock()
    seen = bench.endpoint.observations(ramp.cursor, settle_s=bench.policy.canary.settle_s)
    frame = _ours(seen.frame, ramp)
    statistics = ramp.tracker.observe(frame, now=now)
    stored = StoredLook(
        statistics,
        step=ramp.step,
        seconds_at_step=now - ramp.step_since,
        stuck_candidate=seen.in_flight.get(ramp.slot, 0),
        stuck_champion=seen.in_flight.get(ramp.slot.sibling, 0),
    )
    look = judge_look(ramp.judge, stored)
    ramp.number += 1
    ramp.requests_at_step += statistics.requests_candidate + statistics.requests_champion
    stats = {"rows": len(seen.frame), "generation": ramp.row.generation, **stored.as_dict()}
    bench.journal.add_look(LookRow(release.row.id, _STAGE, ramp.number, now, ramp.cursor, seen.cursor, stats))
    ramp.cursor = seen.cursor
    share = bench.policy.canary.steps[ramp.step]
    release.trail.numbers({**look.numbers, "share_percent": share}, now=now, step=ramp.number)
    release.progress(
        {
            "step": ramp.step + 1,
            "steps": len(bench.policy.canary.steps),
            "share_percent": share,
            "look": ramp.number,
            "seconds_at_step": round(now - ramp.step_since, 1),
            "outcome": look.verdict.outcome.value,
            "reason": look.verdict.reason,
            "advance": look.advance.reason,
            "eta_units": look.verdict.eta_units,
            **look.numbers,
        }
    )
    return look


def judge_look(judge: CanaryJudge, stored: StoredLook) -> Look:
    """One look from its stored numbers: the same live and when a release is resumed."""
    return judge.look(
        stored.statistics,
        step=stored.step,
        seconds_at_step=stored.seconds_at_step,
        stuck_candidate=stored.stuck_candidate,
        stuck_champion=stored.stuck_champion,
    )


def _restore(release: Release, row: EndpointRow) -> _Ramp:
    """The ramp as it was after the last stored look; a fresh one where there is none.

    Users already counted must not count again, so the tracker reads the stored looks' requests
    once more; the judge takes the stored counts, which also outlive the access log.
    """
    bench = release.bench
    looks = bench.journal.looks(release.row.id, _STAGE)
    slot = row.default.sibling
    if not looks:
        return _begin(release, row, slot)
    head, *rest = looks
    thresholds = LatencyThresholds(head.stats["thresholds"])
    ramp = _Ramp(
        row=row,
        slot=slot,
        judge=CanaryJudge(bench.policy.canary, thresholds),
        tracker=UnitTracker(bench.policy.canary, bench.policy.assign_by, thresholds),
        cursor=looks[-1].cursor_to,
        number=looks[-1].number,
        step=int(rest[-1].stats["step"]) if rest else 0,
        step_since=bench.clock(),
        first_generation=int(head.stats["generation"]),
    )
    past = _Past(bench.endpoint, head.cursor_to)
    for look in rest:
        ramp.tracker.observe(_ours(past.take(int(look.stats["rows"])), ramp), now=look.time)
        seen = judge_look(ramp.judge, StoredLook.from_dict(look.stats))
        if seen.verdict.failed:
            ramp.rejected = seen.verdict
    _LOG.info("resumed %s after look %d at step %d", release.row.id, ramp.number, ramp.step + 1)
    return ramp


def _begin(release: Release, row: EndpointRow, slot: Slot) -> _Ramp:
    """Fix the latency thresholds from past champion requests, waiting for enough of them."""
    import pandas as pd

    bench = release.bench
    seen = bench.endpoint.observations(release.placed_cursor)
    cursor, champion = seen.cursor, seen.frame[~seen.frame["failed"]]
    entered_at, fresh = bench.clock(), 0
    # Fresh requests first: those before ran beside the shadow's replays. But nobody waits long for them,
    # nor longer than a step bakes.
    patience_s = min(_BASELINE_FRESH_S, bench.policy.canary.bake_s)
    while len(champion) < BASELINE_REQUESTS_MIN or (
        fresh < _BASELINE_FRESH and bench.clock() < entered_at + patience_s
    ):
        release.check()
        release.progress(
            {
                "reason": f"HOLD: {len(champion)} of {BASELINE_REQUESTS_MIN} champion requests seen, "
                "from which the latency thresholds are taken"
            }
        )
        bench.sleep(bench.policy.canary.look_every_s)
        seen = bench.endpoint.observations(cursor)
        cursor = seen.cursor
        new = seen.frame[~seen.frame["failed"]]
        fresh += len(new)
        champion = pd.concat([champion, new]) if len(champion) else new
    champion = champion.tail(max(fresh, BASELINE_REQUESTS_MIN))
    thresholds = LatencyThresholds.from_past(champion["service_ms"].to_numpy())
    bench.journal.add_look(
        LookRow(
            release.row.id,
            _STAGE,
            0,
            bench.clock(),
            cursor,
            cursor,
            {
                "rows": 0,
                "generation": row.generation,
                "thresholds": thresholds.as_dict(),
                "baseline_requests": len(champion),
            },
        )
    )
    return _Ramp(
        row=row,
        slot=slot,
        judge=CanaryJudge(bench.policy.canary, thresholds),
        tracker=UnitTracker(bench.policy.canary, bench.policy.assign_by, thresholds),
        cursor=cursor,
        number=0,
        step=0,
        step_since=bench.clock(),
        first_generation=row.generation,
    )


def _ours(frame: pd.DataFrame, ramp: _Ramp) -> pd.DataFrame:
    """The rows of this release's generations, marked with the arm that they were assigned to."""
    ours = frame[frame["generation"] >= ramp.first_generation]
    return ours.assign(candidate=ours["slot"] == ramp.slot.value)


def _re_enter(release: Release, ramp: _Ramp, error: LeaseExpired) -> None:
    """HOLD after a lease ran out: prove the candidate healthy again, then grant afresh."""
    bench = release.bench
    _LOG.warning("HOLD: %s", error)
    bench.journal.record(
        bench.name,
        "lease expired",
        who=release.row.owner,
        now=bench.clock(),
        release_id=release.row.id,
        note=str(error),
    )
    ramp.row = withdraw(bench, ramp.row)
    _enter_share(release, ramp)


def _enter_share(release: Release, ramp: _Ramp) -> None:
    """Grant a share where there was none: still ours, the candidate proven healthy, then the lease."""
    bench = release.bench
    release.check()
    check_alive(bench, ramp.slot, release.version)
    ramp.row = grant(bench, ramp.row, bench.policy.canary.steps[ramp.step])
    _to_step(ramp, ramp.step, bench.clock())


def _rebuild(release: Release, ramp: _Ramp) -> None:
    """Judge and tracker as the journal has them: what a failed look had counted must not count twice."""
    fresh = _restore(release, ramp.row)
    ramp.judge, ramp.tracker, ramp.cursor = fresh.judge, fresh.tracker, fresh.cursor
    ramp.number, ramp.rejected, ramp.is_stale = fresh.number, fresh.rejected, False


def _bear(release: Release, ramp: _Ramp, error: TransientError) -> None:
    """HOLD while something is away for a moment; past a few leases the release is INTERRUPTED.

    Nothing is lost by waiting: a lease that is not renewed meanwhile gives the traffic back.
    """
    now = release.bench.clock()
    ramp.trouble_since = ramp.trouble_since or now
    if now - ramp.trouble_since > _PATIENCE_LEASES * release.bench.policy.canary.lease_s:
        raise error
    _LOG.warning("HOLD: %s", error)


def _advance(release: Release, ramp: _Ramp, look: Look) -> None:
    """Take the largest step whose worst case the policy's error budget allows, or stay and say why."""
    now, canary = release.bench.clock(), release.bench.policy.canary
    rate = ramp.requests_at_step / max(now - ramp.step_since, canary.look_every_s)
    chosen = next_step(
        canary,
        ramp.step,
        excess_high=look.numbers.get("difference/errors/high"),
        requests_per_s=rate,
    )
    if chosen.step is None:
        if ramp.step < len(canary.steps) - 1:
            release.progress({**release.row.progress, "advance": f"HOLD: {chosen.reason}"})
        return
    _to_step(ramp, chosen.step, now)
    share = canary.steps[ramp.step]
    _LOG.info("%s: step %d, %g%%: %s", release.row.id, ramp.step + 1, share, chosen.reason)
    release.bench.journal.record(
        release.bench.name,
        "step",
        who=release.row.owner,
        now=now,
        release_id=release.row.id,
        share_percent=share,
        reason=chosen.reason,
    )


def _to_step(ramp: _Ramp, step: int, now: float) -> None:
    """Count the time and the requests of a step from here on."""
    ramp.step, ramp.step_since, ramp.requests_at_step = step, now, 0


def _ask_human_when_stalled(release: Release, ramp: _Ramp, look: Look) -> None:
    """A step that stays undecided asks a person, once; it never passes by itself."""
    bench = release.bench
    stalled_s = bench.clock() - ramp.step_since
    if ramp.asked or stalled_s < bench.policy.canary.ask_after_s:
        return
    ramp.asked = True
    share = bench.policy.canary.steps[ramp.step]
    news.stalled(bench, release.row, look.verdict, stalled_s=stalled_s, share=share)
