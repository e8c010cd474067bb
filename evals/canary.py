"""The canary's judge: from the counts of each look to roll back, go on, promote, or wait.

Rollback: the weighted mean of the families' e-processes (errors, latency, quality) reaches
1/alpha; the mean is valid under any dependence, so a version that is no worse than its tolerances
is rolled back with probability at most alpha in a whole release, however often one looks.
Promotion: every required non-inferiority e-process has reached 1/false_promote, and the soak is
over. Everything else waits; no clock turns waiting into a PASS.

A budget breach rolls back only where the champion keeps the budget at the same time: its e-value
is the smaller of the two, an e-value for "the candidate is within the budget or the champion is
not". Where both break it, a rollback would not help, and the release holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from configs.policy import Canary
from evals.contrast import Contrast
from evals.evidence import RESTAKE_AT_STEP, RESTAKE_PER_UNIT, Evidence, Question, log_mean
from evals.explaining import (
    LOST_TELEMETRY,
    lacks,
    named,
    of_missing,
    of_promotion,
    of_rollback,
    of_waiting,
    spoken,
)
from evals.looks import (
    ERRORS,
    LatencyThresholds,
    LookStatistics,
    StoredLook,
    UnitGroup,
    margin,
    required_quantiles,
)
from evals.sequential import SampleRatio
from evals.verdict import Finding, Outcome, Verdict
from evals.wording import capped_e, e_text

_LOG_LOST = math.log(1000)
"""The sample-ratio test stops a release wrongly in at most 1 of 1000."""
TELEMETRY_MISSING = "telemetry is missing"
"""Begins the reason of a release that is held because the candidate's records are too few."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look says. `verdict` decides the release, `advance` only the next share.

    `numbers` are to be logged over time (evidence as log10 of the e-value; rates as fractions),
    `progress` is for people.
    """

    verdict: Verdict
    advance: Verdict
    numbers: dict[str, float] = field(default_factory=dict)
    progress: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "verdict": self.verdict.as_dict(),
            "advance": self.advance.as_dict(),
            "numbers": dict(self.numbers),
            "progress": list(self.progress),
        }


class CanaryJudge:
    """Judges one release from its looks, in their order; sees counts only, never requests.

    Keep one judge a release, also where an interruption gave it a new generation. State is a few
    arrays whose size depends on the policy, not on the traffic.
    """

    def __init__(self, policy: Canary, thresholds: LatencyThresholds, *, quality: bool = False) -> None:
        self._policy = policy
        self._evidence = Evidence(policy, thresholds, quality=quality)
        self._missing = thresholds.missing(required_quantiles(policy))
        self._log_rollback = math.log(1 / policy.false_rollback)
        self._log_promote = math.log(1 / policy.false_promote)
        self._ratio = SampleRatio()
        self._step = -1
        self._step_units = 0
        self._requests = [0, 0]
        self._late = [0, 0]
        self._entered = [0, 0]
        self._expected_entered = 0.0
        self._ended: Verdict | None = None

    def look(
        self,
        statistics: LookStatistics,
        *,
        step: int,
        seconds_at_step: float,
        stuck_candidate: int = 0,
        stuck_champion: int = 0,
    ) -> Look:
        """Take one look's counts and say what they mean together with all earlier ones.

        `step` is the index into the policy's steps, `seconds_at_step` the time since its share
        was granted; `stuck_*` count requests that have run for longer than `settle_s`.
        A FAIL or an ERROR of the telemetry stays: later looks cannot take it back.
        """
        if not 0 <= step < len(self._policy.steps):
            raise ValueError(f"step is {step}; the policy has steps 0 to {len(self._policy.steps) - 1}.")
        self._enter_step(step)
        for group in statistics.groups:
            self._play(group)
        self._requests[0] += statistics.requests_candidate
        self._requests[1] += statistics.requests_champion
        self._late[0] += statistics.late_candidate
        self._late[1] += statistics.late_champion
        pi = self._policy.steps[step] / 100
        stuck = _is_stuck(stuck_candidate, stuck_champion, pi)
        log_lost = self._ratio.log_e_if_reported(stuck_candidate, stuck_champion, pi)
        harms, required = self._evidence.harms(), self._evidence.required(pi)
        verdict = self._verdict(harms, required, log_lost, seconds_at_step, stuck)
        if verdict.outcome is Outcome.FAIL or (verdict.outcome is Outcome.ERROR and log_lost >= _LOG_LOST):
            self._ended = verdict
        advance = self._advance(verdict, seconds_at_step, stuck)
        numbers = self._numbers(harms, required, log_lost, stuck_candidate, stuck_champion)
        return Look(verdict, advance, numbers, self._progress(verdict, harms, required, pi))

    def take(self, stored: StoredLook) -> Look:
        """One look from its stored numbers: the same live, resumed, and years later."""
        return self.look(
            stored.statistics,
            step=stored.step,
            seconds_at_step=stored.seconds_at_step,
            stuck_candidate=stored.stuck_candidate,
            stuck_champion=stored.stuck_champion,
        )

    def _enter_step(self, step: int) -> None:
        if step == self._step:
            return
        if self._step >= 0:
            self._evidence.enter_step()
            self._ratio.wealth.stake(RESTAKE_AT_STEP)
        self._step, self._step_units = step, 0

    def _play(self, group: UnitGroup) -> None:
        """Bet on one group of units, with its own pi."""
        entered = group.entered_candidate, group.entered_champion
        self._ratio.update(*entered, group.pi)
        self._ratio.wealth.stake(-math.expm1(-RESTAKE_PER_UNIT * sum(entered)))
        self._entered = [total + more for total, more in zip(self._entered, entered, strict=True)]
        self._expected_entered += group.pi * sum(entered)
        self._step_units += self._evidence.play(group)

    def _verdict(
        self,
        harms: list[Question],
        required: list[Question],
        log_lost: float,
        seconds_at_step: float,
        stuck: str | None,
    ) -> Verdict:
        if self._ended is not None:
            return self._ended
        if log_lost >= _LOG_LOST:
            return self._lost_telemetry(log_lost)
        log_harm = log_mean(harms)
        if log_harm >= self._log_rollback:
            return self._roll_back(harms, log_harm)
        findings = tuple(self._finding(question) for question in required)
        if self._missing:
            reason = (
                f"no past champion latency for {', '.join(self._missing)}, which promotion requires."
                " Next: let the champion serve more requests first, or require other quantiles."
            )
            missing = tuple(Finding(margin(name), Outcome.ERROR, reason) for name in self._missing)
            return Verdict(
                Outcome.ERROR, reason, (*missing, *findings), would_change=of_missing(self._missing)
            )
        waiting = self._waiting(seconds_at_step, stuck)
        undecided = [question for question in required if question.log_e < self._log_promote]
        if not undecided and waiting is None:
            units, _ = self._evidence.strata.units(ERRORS)
            asked = ", ".join(spoken(question.metric) for question in required)
            bound = 1 / self._policy.false_promote
            reason = f"no worse than its margins after {units} candidate units"
            reason += f": every E >= {bound:g} on {asked}, and the soak is over"
            return Verdict(Outcome.PASS, reason, findings, 0.0, of_promotion(self._policy, required))
        fatal = self._evidence.failures_to(self._log_rollback, self._policy.steps[self._step] / 100)
        change = of_waiting(self._policy, undecided, waiting, log_harm, fatal)
        if not undecided:
            return Verdict(Outcome.INCONCLUSIVE, f"evidence suffices; {waiting}", findings, 0.0, change)
        etas = [question.eta for question in undecided]
        eta = (
            None
            if any(value is None for value in etas)
            else max(value for value in etas if value is not None)
        )
        reason = "not yet proven no worse: " + "; ".join(
            lacks(self._policy, question) for question in undecided
        )
        return Verdict(Outcome.INCONCLUSIVE, reason, findings, eta, change)

    def _roll_back(self, harms: list[Question], log_harm: float) -> Verdict:
        ranked = sorted(harms, key=lambda harm: harm.log_e + math.log(harm.weight), reverse=True)
        findings = tuple(
            self._harm_finding(harm, Outcome.FAIL if index == 0 else None)
            for index, harm in enumerate(ranked)
        )
        bound = 1 / self._policy.false_rollback
        reason = f"{findings[0].reason}; together E = {e_text(log_harm)} passed 1/alpha = {bound:g}"
        change = of_rollback(self._policy, ranked[0], self._evidence.strata.contrast(ranked[0].metric))
        return Verdict(Outcome.FAIL, reason, findings, would_change=change)

    def _harm_finding(self, harm: Question, outcome: Outcome | None) -> Finding:
        contrast = self._evidence.strata.contrast(harm.metric)
        alone = harm.log_e + math.log(harm.weight) >= self._log_rollback
        outcome = outcome or (Outcome.FAIL if alone else Outcome.INCONCLUSIVE)
        name = named(self._policy, harm.metric)
        reason = f"{name}: {contrast.text}, E = {e_text(harm.log_e)} after {contrast.units} candidate units"
        reason += f" ({self._requests[0]} requests)"
        needed = 1 / (self._policy.false_rollback * harm.weight)
        return _finding(harm.metric, outcome, reason, contrast, harm.log_e, needed)

    def _finding(self, question: Question) -> Finding:
        contrast = self._evidence.strata.contrast(question.metric)
        done = question.log_e >= self._log_promote
        reason = f"{named(self._policy, question.metric)}: {contrast.text}; "
        reason += f"E = {e_text(question.log_e)}" if done else lacks(self._policy, question)
        outcome = Outcome.PASS if done else Outcome.INCONCLUSIVE
        return _finding(
            question.metric, outcome, reason, contrast, question.log_e, 1 / self._policy.false_promote
        )

    def _lost_telemetry(self, log_lost: float) -> Verdict:
        seen = f"{self._entered[0]} of {sum(self._entered)} units"
        reason = f"{TELEMETRY_MISSING}: the candidate reported {seen} where about"
        reason += f" {self._expected_entered:.0f} were assigned to it (E = {e_text(log_lost)} passed"
        reason += (
            f" {math.exp(_LOG_LOST):g}); nothing can be concluded. Next: find out whose records are lost."
        )
        finding = Finding(
            "sample ratio",
            Outcome.ERROR,
            reason,
            candidate=self._entered[0] / max(sum(self._entered), 1),
            champion=self._entered[1] / max(sum(self._entered), 1),
            evidence=capped_e(log_lost),
            needed=math.exp(_LOG_LOST),
            units=sum(self._entered),
        )
        return Verdict(Outcome.ERROR, reason, (finding,), would_change=LOST_TELEMETRY)

    def _waiting(self, seconds_at_step: float, stuck: str | None) -> str | None:
        """What the clock or the requests in flight still owe, besides evidence."""
        last = len(self._policy.steps) - 1
        if self._step < last:
            return f"still at step {self._step + 1} of {last + 1}"
        if seconds_at_step < self._policy.soak_s:
            return f"soaking for {self._policy.soak_s - seconds_at_step:.0f} s more"
        return stuck

    def _advance(self, verdict: Verdict, seconds_at_step: float, stuck: str | None) -> Verdict:
        policy = self._policy
        if verdict.outcome in (Outcome.FAIL, Outcome.ERROR):
            return Verdict(verdict.outcome, verdict.reason, would_change=verdict.would_change)
        waiting = partial(Verdict, Outcome.INCONCLUSIVE, would_change=verdict.would_change)
        if self._step == len(policy.steps) - 1:
            return waiting("the last step: no larger share to grant")
        if self._step_units < policy.min_units:
            lacking = policy.min_units - self._step_units
            reason = f"{self._step_units} of {policy.min_units} candidate units seen at this step"
            return waiting(reason, eta_units=float(lacking))
        if seconds_at_step < policy.bake_s:
            return waiting(f"baking for {policy.bake_s - seconds_at_step:.0f} s more")
        if stuck is not None:
            return waiting(stuck)
        reason = f"{self._step_units} candidate units in {seconds_at_step:.0f} s without a rejection"
        return Verdict(Outcome.PASS, reason, would_change=verdict.would_change)

    def _numbers(
        self,
        harms: list[Question],
        required: list[Question],
        log_lost: float,
        stuck_candidate: int,
        stuck_champion: int,
    ) -> dict[str, float]:
        """For plots over time; every value is finite."""
        units = self._evidence.strata.units(ERRORS)
        numbers: dict[str, float] = {
            "units/candidate": units[0],
            "units/champion": units[1],
            "requests/candidate": self._requests[0],
            "requests/champion": self._requests[1],
            "late/candidate": self._late[0],
            "late/champion": self._late[1],
            "stuck/candidate": stuck_candidate,
            "stuck/champion": stuck_champion,
            "evidence_log10/rollback": log_mean(harms) / math.log(10),
            "evidence_log10/promote": min(question.log_e for question in required) / math.log(10),
            "evidence_log10/sample_ratio": log_lost / math.log(10),
        }
        errors = self._evidence.strata.contrast(ERRORS)
        if errors.low is not None and errors.high is not None:
            numbers |= {"difference/errors/low": errors.low, "difference/errors/high": errors.high}
        for kind, questions in (("rollback", harms), ("promote", required)):
            for question in questions:
                numbers[f"evidence_log10/{kind}/{question.metric}"] = question.log_e / math.log(10)
                contrast = self._evidence.strata.contrast(question.metric)
                for arm, rate in (("candidate", contrast.candidate), ("champion", contrast.champion)):
                    if rate is not None:
                        numbers[f"rate/{question.metric}/{arm}"] = rate
        return {name: float(value) for name, value in numbers.items()}

    def _progress(
        self, verdict: Verdict, harms: list[Question], required: list[Question], pi: float
    ) -> tuple[str, ...]:
        units = self._evidence.strata.units(ERRORS)
        place = f"step {self._step + 1} of {len(self._policy.steps)} ({100 * pi:g}%)"
        lines = [
            f"{place}: {units[0]} candidate and {units[1]} champion units, {self._step_units} at this step",
            f"errors: {self._evidence.strata.contrast(ERRORS).text}",
            f"harm: E = {e_text(log_mean(harms))}, rolls back at {1 / self._policy.false_rollback:g}",
        ]
        for question in required:
            done = question.log_e >= self._log_promote
            text = (
                f"{spoken(question.metric)} E = {e_text(question.log_e)}"
                if done
                else lacks(self._policy, question)
            )
            lines.append(f"no worse: {text}")
        return (*lines, f"{verdict.outcome}: {verdict.reason}")


def replay(
    policy: Canary, thresholds: LatencyThresholds, looks: Iterable[StoredLook], *, quality: bool = False
) -> list[Look]:
    """Make every decision of a release again from its stored looks; the same, byte for byte."""
    judge = CanaryJudge(policy, thresholds, quality=quality)
    return [judge.take(look) for look in looks]


def _is_stuck(candidate: int, champion: int, pi: float) -> str | None:
    """Requests that hang on the candidate, beyond twice what the champion's would lead one to expect."""
    expected = champion * pi / (1 - pi)
    if candidate > 2 * expected:
        return f"{candidate} requests hang on the candidate ({champion} on the champion)"
    return None


def _finding(
    metric: str, outcome: Outcome, reason: str, contrast: Contrast, log_e: float, needed: float
) -> Finding:
    return Finding(
        metric,
        outcome,
        reason,
        candidate=contrast.candidate,
        champion=contrast.champion,
        low=contrast.low,
        high=contrast.high,
        evidence=capped_e(log_e),
        needed=needed,
        units=contrast.units,
    )
