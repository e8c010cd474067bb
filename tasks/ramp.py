"""The canary: grants shares, looks, and lets the evidence decide.

One loop: read what finished since the last look, count it, let the judge decide, store the
look, then renew the lease, take the next step, or stop. The lease is renewed here and nowhere
else, so a loop that hangs or dies gives the traffic back by doing nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from configs.policy import Canary
from evals.canary import CanaryJudge, Look
from evals.looks import LatencyThresholds, StoredLook
from evals.periods import past_thresholds
from evals.ramp import next_step
from evals.verdict import Outcome, Verdict
from serving.endpoint import Slot
from serving.errors import LeaseExpired, TransientError
from serving.records import EndpointRow, LookRow, Stage
from tasks import news
from tasks.engines import engine_objection
from tasks.ramp_evidence import RampEvidence, evidence_of, past_periods, period_start
from tasks.release import Release
from tasks.transitions import check_alive, grant, withdraw

_LOG = logging.getLogger("interlock.ramp")
_STAGE = Stage.CANARY.value
BASELINE_REQUESTS_MIN = 200
"""Champion requests before the canary from which the latency thresholds are taken."""
_BASELINE_FRESH = 500
_BASELINE_FRESH_S = 5.0
_PATIENCE_LEASES = 4


@dataclass(slots=True)
class _Ramp:
    """Where the ramp stands: everything the loop carries from look to look."""

    row: EndpointRow
    slot: Slot
    judge: CanaryJudge
    evidence: RampEvidence
    cursor: str
    number: int
    step: int
    step_since: float
    requests_at_step: int = 0
    seen_until: float = 0.0
    asked: bool = False
    trouble_since: float | None = None
    rejected: Verdict | None = None
    is_stale: bool = False


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
    _enter_first_share(release, ramp)
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
            _grant(release, ramp)
            _ask_human_when_stalled(release, ramp, look)
            ramp.trouble_since = None
        except LeaseExpired as error:
            _re_enter(release, ramp, error)
        except TransientError as error:
            _bear(release, ramp, error)
            ramp.is_stale = True


def _look(release: Release, ramp: _Ramp) -> Look:
    bench, now = release.bench, release.bench.clock()
    seen = ramp.evidence.look(ramp.cursor, now)
    statistics = seen.statistics
    ramp.seen_until = seen.watermark
    at_step_s = max(0.0, seen.watermark - ramp.step_since)
    stored = StoredLook(
        statistics,
        step=ramp.step,
        seconds_at_step=at_step_s,
        stuck_candidate=seen.stuck_candidate,
        stuck_champion=seen.stuck_champion,
    )
    look = judge_look(ramp.judge, stored)
    ramp.number += 1
    ramp.requests_at_step += statistics.requests_candidate + statistics.requests_champion
    stats = {**seen.extra, "generation": ramp.row.generation, **stored.as_dict()}
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
            "seconds_at_step": round(at_step_s, 1),
            "outcome": look.verdict.outcome.value,
            "reason": look.verdict.reason,
            "advance": look.advance.reason,
            "eta_units": look.verdict.eta_units,
            **look.numbers,
        }
    )
    return look


def judge_of(canary: Canary, thresholds: LatencyThresholds) -> CanaryJudge:
    """The judge that a policy asks for, before its first look."""
    return CanaryJudge(canary, thresholds, quality=canary.quality is not None)


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

    The judge takes the stored counts, which also outlive the access log.
    """
    bench = release.bench
    looks = bench.journal.looks(release.row.id, _STAGE)
    slot = row.default.sibling
    if not looks:
        return _begin(release, row, slot)
    head, *rest = looks
    thresholds = LatencyThresholds.from_dict(head.stats["thresholds"])
    ramp = _Ramp(
        row=row,
        slot=slot,
        judge=judge_of(bench.policy.canary, thresholds),
        evidence=evidence_of(bench, slot, int(head.stats["generation"]), thresholds),
        cursor=looks[-1].cursor_to,
        number=looks[-1].number,
        step=int(rest[-1].stats["step"]) if rest else 0,
        step_since=bench.clock(),
    )
    ramp.evidence.replay(head, rest)
    for look in rest:
        seen = judge_look(ramp.judge, StoredLook.from_dict(look.stats))
        if seen.verdict.failed:
            ramp.rejected = seen.verdict
    _LOG.info("resumed %s after look %d at step %d", release.row.id, ramp.number, ramp.step + 1)
    return ramp


def _begin(release: Release, row: EndpointRow, slot: Slot) -> _Ramp:
    """Fix the latency thresholds from past champion requests, waiting for enough of them."""
    bench = release.bench
    if bench.endpoint.capabilities.per_request_observations:
        thresholds, past, cursor = _past_requests(release)
    else:
        thresholds, past, cursor = _past_periods(release, slot)
    evidence = evidence_of(bench, slot, row.generation, thresholds)
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
                "baseline_requests": past,
                **evidence.extra,
            },
        )
    )
    return _Ramp(
        row=row,
        slot=slot,
        judge=judge_of(bench.policy.canary, thresholds),
        evidence=evidence,
        cursor=cursor,
        number=0,
        step=0,
        step_since=bench.clock(),
    )


def _past_requests(release: Release) -> tuple[LatencyThresholds, int, str]:
    """Thresholds from the champion's requests since the candidate was placed, how many, and the cursor."""
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
        _await_baseline(release, len(champion))
        seen = bench.endpoint.observations(cursor)
        cursor = seen.cursor
        new = seen.frame[~seen.frame["failed"]]
        fresh += len(new)
        champion = pd.concat([champion, new]) if len(champion) else new
    champion = champion.tail(max(fresh, BASELINE_REQUESTS_MIN))
    return LatencyThresholds.from_requests(bench.policy.canary, champion), len(champion), cursor


def _past_periods(release: Release, slot: Slot) -> tuple[LatencyThresholds, int, str]:
    """The same from the last hour's counts."""
    bench = release.bench
    while True:
        past = past_periods(bench, slot)
        requests = sum(period.requests for period in past)
        if requests >= BASELINE_REQUESTS_MIN:
            return past_thresholds(past), requests, period_start(bench, bench.clock())
        _await_baseline(release, requests)


def _await_baseline(release: Release, requests: int) -> None:
    """Let a look's time pass, and say what is waited for."""
    release.check()
    release.progress(
        {
            "reason": f"HOLD: {requests} of {BASELINE_REQUESTS_MIN} champion requests seen, "
            "from which the latency thresholds are taken"
        }
    )
    release.bench.sleep(release.bench.policy.canary.look_every_s)


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


def _enter_first_share(release: Release, ramp: _Ramp) -> None:
    """Enter with the patience that every look has: the platform may be busy or throttle just now."""
    while True:
        try:
            _enter_share(release, ramp)
        except TransientError as error:
            _bear(release, ramp, error)
            release.bench.sleep(release.bench.policy.canary.look_every_s)
        else:
            ramp.trouble_since = None
            return


def _enter_share(release: Release, ramp: _Ramp) -> None:
    """Grant a share where there was none: still ours, the candidate proven healthy, then the lease."""
    bench = release.bench
    release.check()
    check_alive(bench, ramp.slot, release.version)
    _grant(release, ramp)
    _to_step(ramp, ramp.step, bench.clock())


def _grant(release: Release, ramp: _Ramp) -> None:
    """Give or renew the step's share. A platform may take minutes to follow: the step's time begins then."""
    bench, share = release.bench, release.bench.policy.canary.steps[ramp.step]
    asked_at = bench.clock()
    before_bp = ramp.row.share_bp
    ramp.row = grant(bench, ramp.row, share)
    now = bench.clock()
    ramp.evidence.holds(ramp.row.share_bp, asked_at=asked_at, now=now)
    if ramp.row.share_bp != before_bp:
        ramp.step_since = now


def _rebuild(release: Release, ramp: _Ramp) -> None:
    """Judge and tracker as the journal has them: what a failed look had counted must not count twice."""
    fresh = _restore(release, ramp.row)
    ramp.judge, ramp.evidence, ramp.cursor = fresh.judge, fresh.evidence, fresh.cursor
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
    busy = engine_objection(release, ramp.slot, step=ramp.number)
    if busy:
        release.progress({**release.row.progress, "advance": f"HOLD: {busy}"})
        return
    rate = ramp.requests_at_step / max(ramp.seen_until - ramp.step_since, canary.look_every_s)
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
