"""The canary: grants shares, looks, and lets the evidence decide.

One loop: read what finished since the last look, count it, let the judge decide, store the
look, then renew the lease, take the next step, or stop. The lease is renewed here and nowhere
else, so a loop that hangs or dies gives the traffic back by doing nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from configs.policy import LOOKS_MAX, Canary
from evals.canary import CanaryJudge
from evals.decisions import Decision, decide, unresolved
from evals.looks import LatencyThresholds, StoredLook
from evals.ramp import NextStep
from evals.verdict import Outcome, Verdict
from serving.endpoint import Slot
from serving.errors import LeaseExpired, TransientError
from serving.records import EndpointRow, LookRow, Stage
from tasks import news
from tasks.engines import engine_objection, guard_numbers
from tasks.fingerprint import engine
from tasks.ramp_baseline import take_baseline
from tasks.ramp_evidence import RampEvidence, Seen, evidence_of
from tasks.release import Release
from tasks.transitions import check_alive, grant, withdraw

_LOG = logging.getLogger("interlock.ramp")
_STAGE = Stage.CANARY.value
_PATIENCE_LEASES = 4
_WHO = "ramp"


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
    held_s: float = 0.0
    held_until: float = 0.0
    requests_at_step: int = 0
    units_before: float | None = None
    warm_until: float = 0.0
    seen_until: float = 0.0
    asked: bool = False
    trouble_since: float | None = None
    rejected: Verdict | None = None
    is_stale: bool = False
    lapsed: str = ""


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
            decision = _look(release, ramp)
            verdict = decision.look.verdict
            busy = _engines_object(release, ramp, decision)
            if verdict.outcome is not Outcome.INCONCLUSIVE and not (verdict.passed and (is_paused or busy)):
                return verdict
            if ramp.number >= LOOKS_MAX:
                return unresolved(verdict, ramp.number)
            following = None if is_paused or busy or ramp.lapsed else _following(release, ramp, decision)
            if ramp.lapsed:
                _re_enter(release, ramp)
            elif following is None:
                _grant(release, ramp, ramp.step)
            else:
                _advance(release, ramp, following)
            _ask_human_when_stalled(release, ramp, replace(verdict, reason=busy) if busy else verdict)
            ramp.trouble_since = None
        except LeaseExpired as error:
            ramp.lapsed = str(error)
        except TransientError as error:
            _bear(release, ramp, error)
            ramp.is_stale = True


def _look(release: Release, ramp: _Ramp) -> Decision:
    bench, now = release.bench, release.bench.clock()
    canary = bench.policy.canary
    seen = ramp.evidence.look(ramp.cursor, now)
    statistics = seen.statistics
    ramp.seen_until = seen.watermark
    ramp.requests_at_step += statistics.requests_candidate + statistics.requests_champion
    _count_held(ramp, seen.watermark)
    stored = StoredLook(
        statistics,
        step=ramp.step,
        seconds_at_step=ramp.held_s,
        stuck_candidate=seen.stuck_candidate,
        stuck_champion=seen.stuck_champion,
        requests_at_step=ramp.requests_at_step,
    )
    decision = decide(canary, ramp.judge, stored)
    look = decision.look
    if not _says_nothing(seen, decision):
        ramp.number += 1
        decided = {"generation": ramp.row.generation, "decided": decision.summary}
        stats = {**seen.extra, **stored.as_dict(), **decided}
        bench.journal.add_look(
            LookRow(release.row.id, _STAGE, ramp.number, now, ramp.cursor, seen.cursor, stats)
        )
    ramp.cursor = seen.cursor
    release.meter.answered(seen.answered)
    release.meter.look(now=now)
    share = canary.steps[ramp.step]
    guards = guard_numbers(bench, ramp.slot)
    ends = {f"cut_short/{arm}": part for arm, part in seen.cut_short.items()}
    numbers = {**look.numbers, **guards, **ends, "share_percent": share}
    release.trail.numbers(numbers, now=now, step=ramp.number)
    release.progress(
        {
            "step": ramp.step + 1,
            "steps": len(canary.steps),
            "share_percent": share,
            "look": ramp.number,
            "seconds_at_step": round(stored.seconds_at_step, 1),
            "outcome": look.verdict.outcome.value,
            "reason": look.verdict.reason,
            "would_change": look.verdict.would_change,
            "cut_short": dict(seen.cut_short),
            "advance": look.advance.reason,
            "eta_units": look.verdict.eta_units,
            "eta_s": _eta_s(ramp, look.numbers["units/candidate"], look.verdict.eta_units, now),
            **look.numbers,
        }
    )
    return decision


def _count_held(ramp: _Ramp, watermark: float) -> None:
    """Count the time at the step for which its share was held: not what passed after the lease's end."""
    since = max(ramp.step_since, ramp.held_until)
    ramp.held_s += max(0.0, min(watermark, ramp.row.until) - since)
    ramp.held_until = max(ramp.held_until, watermark)


def _says_nothing(seen: Seen, decision: Decision) -> bool:
    """An empty look that decides nothing is not kept: silence may last for weeks."""
    look = decision.look
    return (
        seen.statistics.is_empty
        and seen.is_idle
        and decision.following is None
        and look.verdict.outcome is Outcome.INCONCLUSIVE
    )


def _eta_s(ramp: _Ramp, units: float, eta_units: float | None, now: float) -> float | None:
    """Seconds until the evidence may suffice, at the pace of candidate units since the step began."""
    ramp.units_before = units if ramp.units_before is None else ramp.units_before
    seconds, came = now - ramp.step_since, units - ramp.units_before
    if eta_units is None or seconds <= 0 or came <= 0:
        return None
    return round(eta_units * seconds / came, 1)


def judge_of(canary: Canary, thresholds: LatencyThresholds) -> CanaryJudge:
    """The judge that a policy asks for, before its first look."""
    return CanaryJudge(canary, thresholds, quality=canary.quality is not None)


def _restore(release: Release, row: EndpointRow) -> _Ramp:
    """The ramp as it was after the last stored look; a fresh one where there is none.

    The judge takes the stored counts, which also outlive the access log.
    """
    bench = release.bench
    every = bench.journal.looks(release.row.id, _STAGE)
    slot = row.default.sibling
    begun = max((index for index, look in enumerate(every) if "thresholds" in look.stats), default=None)
    if begun is None or every[begun].stats.get("champion", release.row.champion) != release.row.champion:
        # What was shown against a champion that is gone is no evidence against this one.
        return _begin(release, row, slot, number=every[-1].number + 1 if every else 0)
    head, *rest = every[begun:]
    thresholds = LatencyThresholds.from_dict(head.stats["thresholds"])
    ramp = _Ramp(
        row=row,
        slot=slot,
        judge=judge_of(bench.policy.canary, thresholds),
        evidence=evidence_of(bench, slot, int(head.stats["generation"]), thresholds),
        cursor=every[-1].cursor_to,
        number=every[-1].number,
        step=int(rest[-1].stats["step"]) if rest else 0,
        step_since=bench.clock(),
    )
    ramp.evidence.replay(head, rest)
    for look in rest:
        seen = ramp.judge.take(StoredLook.from_dict(look.stats))
        if seen.verdict.failed:
            ramp.rejected = seen.verdict
    _LOG.info("resumed %s after look %d at step %d", release.row.id, ramp.number, ramp.step + 1)
    return ramp


def _begin(release: Release, row: EndpointRow, slot: Slot, *, number: int) -> _Ramp:
    """Fix the latency thresholds from past champion requests, waiting for enough of them."""
    bench = release.bench
    baseline = take_baseline(release, slot)
    evidence = evidence_of(bench, slot, row.generation, baseline.thresholds)
    stats = {
        "rows": 0,
        "generation": row.generation,
        "champion": release.row.champion,
        "engine": engine(),
        **baseline.as_dict(release),
        **evidence.extra,
    }
    cursor = baseline.cursor
    bench.journal.add_look(LookRow(release.row.id, _STAGE, number, bench.clock(), cursor, cursor, stats))
    baseline.tell(release)
    for warning in bench.policy.warnings:
        _LOG.warning("%s: %s", release.row.id, warning)
        bench.journal.record(
            bench.name, "warning", who=_WHO, now=bench.clock(), release_id=release.row.id, note=warning
        )
    return _Ramp(
        row=row,
        slot=slot,
        judge=judge_of(bench.policy.canary, baseline.thresholds),
        evidence=evidence,
        cursor=cursor,
        number=number,
        step=0,
        step_since=bench.clock(),
    )


def _re_enter(release: Release, ramp: _Ramp) -> None:
    """HOLD after a lease ran out: prove the candidate healthy again, then grant afresh."""
    bench = release.bench
    _LOG.warning("HOLD: %s", ramp.lapsed)
    bench.journal.record(
        bench.name,
        "lease expired",
        who=release.row.owner,
        now=bench.clock(),
        release_id=release.row.id,
        note=ramp.lapsed,
    )
    ramp.row = withdraw(bench, ramp.row)
    _enter_share(release, ramp)
    ramp.lapsed = ""


def _enter_first_share(release: Release, ramp: _Ramp) -> None:
    """Enter with the patience that every look has: the platform may be busy or throttle just now."""
    while True:
        try:
            _enter_share(release, ramp)
        except TransientError as error:
            _bear(release, ramp, error)
            release.bench.sleep(release.bench.policy.canary.look_every_s)
        except LeaseExpired as error:
            ramp.lapsed = str(error)  # given, but not confirmed in time: the first look enters it afresh
            return
        else:
            ramp.trouble_since = None
            return


def _enter_share(release: Release, ramp: _Ramp) -> None:
    """Grant a share where there was none: still ours, the candidate proven healthy, then the lease."""
    bench = release.bench
    release.check()
    check_alive(bench, ramp.slot, release.version)
    _grant(release, ramp, ramp.step)
    ramp.warm_until = bench.clock() + bench.policy.canary.warm_up_s
    ramp.evidence.warm_up(ramp.warm_until)
    _to_step(ramp, ramp.step, bench.clock())


def _grant(release: Release, ramp: _Ramp, step: int) -> None:
    """Give or renew a step's share. A platform may take minutes to follow: the step's time begins then.

    A share that could not be given leaves the ramp at the step whose share it holds.
    """
    bench, share = release.bench, release.bench.policy.canary.steps[step]
    asked_at = bench.clock()
    before_bp = ramp.row.share_bp
    ramp.row = grant(bench, ramp.row, share)
    now = bench.clock()
    ramp.evidence.holds(ramp.row.share_bp, asked_at=asked_at, now=now)
    if step != ramp.step or ramp.row.share_bp != before_bp:
        _to_step(ramp, step, now)


def _rebuild(release: Release, ramp: _Ramp) -> None:
    """Judge and tracker as the journal has them: what a failed look had counted must not count twice."""
    fresh = _restore(release, ramp.row)
    ramp.judge, ramp.evidence, ramp.cursor = fresh.judge, fresh.evidence, fresh.cursor
    ramp.number, ramp.rejected, ramp.is_stale = fresh.number, fresh.rejected, False
    ramp.evidence.warm_up(ramp.warm_until)


def _bear(release: Release, ramp: _Ramp, error: TransientError) -> None:
    """HOLD while something is away for a moment; past a few leases the release is INTERRUPTED.

    Nothing is lost by waiting: a lease that is not renewed meanwhile gives the traffic back.
    """
    now = release.bench.clock()
    ramp.trouble_since = ramp.trouble_since or now
    if now - ramp.trouble_since > _PATIENCE_LEASES * release.bench.policy.canary.lease_s:
        raise error
    _LOG.warning("HOLD: %s", error)


def _engines_object(release: Release, ramp: _Ramp, decision: Decision) -> str:
    """Why the engines hold the step or the promotion that is due; "" where they do not, or none is."""
    following, passed = decision.following, decision.look.verdict.passed
    if following is None and not passed:
        return ""
    busy = engine_objection(release, ramp.slot, step=ramp.number)
    if not busy or not (passed or (following is not None and following.step is not None)):
        return ""
    hold = f"HOLD: {busy}"
    release.progress({**release.row.progress, "reason": hold, "advance": hold})
    return busy


def _following(release: Release, ramp: _Ramp, decision: Decision) -> NextStep | None:
    """The largest step whose worst case the policy's error budget allows; None to stay, saying why."""
    chosen, canary = decision.following, release.bench.policy.canary
    if chosen is None:
        return None
    if chosen.step is None:
        if ramp.step < len(canary.steps) - 1:
            release.progress({**release.row.progress, "advance": f"HOLD: {chosen.reason}"})
        return None
    return chosen


def _advance(release: Release, ramp: _Ramp, following: NextStep) -> None:
    """Take a step: it counts from when its share is there."""
    assert following.step is not None
    _grant(release, ramp, following.step)
    bench, share = release.bench, release.bench.policy.canary.steps[ramp.step]
    _LOG.info("%s: step %d, %g%%: %s", release.row.id, ramp.step + 1, share, following.reason)
    bench.journal.record(
        bench.name,
        "step",
        who=release.row.owner,
        now=ramp.step_since,
        release_id=release.row.id,
        share_percent=share,
        reason=following.reason,
    )


def _to_step(ramp: _Ramp, step: int, now: float) -> None:
    """Count the time and the requests of a step from here on."""
    ramp.step, ramp.step_since, ramp.requests_at_step, ramp.units_before = step, now, 0, None
    ramp.held_s = 0.0


def _ask_human_when_stalled(release: Release, ramp: _Ramp, verdict: Verdict) -> None:
    """A step that stays undecided asks a person, once; it never passes by itself."""
    bench = release.bench
    stalled_s = bench.clock() - ramp.step_since
    if ramp.asked or stalled_s < bench.policy.canary.ask_after_s:
        return
    ramp.asked = True
    share = bench.policy.canary.steps[ramp.step]
    news.stalled(bench, release.row, verdict, stalled_s=stalled_s, share=share)
