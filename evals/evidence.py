"""All e-processes of one canary, and the units that they have seen.

What may roll back (`Evidence.harms`) and what promotion needs (`Evidence.required`), as e-values
with their weights and what they are expected to need still. `evals.canary` decides on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.policy import Canary
from evals.contrast import Strata
from evals.looks import (
    ERRORS,
    QUALITY,
    LatencyThresholds,
    UnitGroup,
    budget,
    budget_limits,
    gauge_of,
    margin,
    required_quantiles,
    tail_of,
    tolerance,
)
from evals.sequential import (
    LEVELS,
    FloatArray,
    OneSample,
    SampleRatio,
    TwoSample,
    below,
    combine,
    odds_times,
    times,
    units_to_go,
)

FAMILY_WEIGHTS = {ERRORS: 0.4, "latency": 0.4, QUALITY: 0.2}
"""Of the families that can be asked; a family without data sources gives its weight to the others.

Latency is service time and the policy's named measures, in equal parts.
"""
_BUDGET_WEIGHT = 0.25
_RESERVE = 0.05
RESTAKE_AT_STEP = 0.5
RESTAKE_PER_UNIT = 2e-5
_WORSE_ODDS = (1.5, 2.0, 4.0, 10.0)
_NO_LABELS = (
    "for no label of the candidate's answers has come yet. Next: interlock labels ENDPOINT FILE, or set "
    "canary.quality.margin to null to promote without them"
)
_LOG_UNEVEN = math.log(1000)
"""A measure that one version reports more often than the other says nothing of either from here on."""


@dataclass(frozen=True, slots=True)
class Question:
    """One e-process that speaks, with what it speaks about."""

    metric: str
    log_e: float
    weight: float = 1.0
    eta: float | None = None
    note: str = ""


def errors_worse(policy: Canary, *, prior_mean: float = 0.01, shape: tuple[int, ...] = ()) -> TwoSample:
    """Null: the candidate's errors exceed the champion's by the tolerance at most."""
    return TwoSample(
        times(1.5, 2, 3, 6, 15),
        [0.15, 0.35, 0.15, 0.15, 0.2],
        worse=True,
        excess=policy.errors.tolerance,
        prior_mean=prior_mean,
        shape=shape,
        reserve=_RESERVE,
    )


def errors_fine(policy: Canary, *, prior_mean: float = 0.01, shape: tuple[int, ...] = ()) -> TwoSample:
    """Null: the candidate's errors exceed the champion's by the margin at least."""
    allowed = policy.errors.margin
    return TwoSample(
        below(allowed, 0.7 * allowed),
        [1, 1],
        worse=False,
        excess=allowed,
        prior_mean=prior_mean,
        shape=shape,
    )


def latency_worse(quantiles: Sequence[str], *, shape: tuple[int, ...] = ()) -> TwoSample:
    """Null: the candidate (divided by 1 + tolerance) exceeds no quantile more often; one process each."""
    return TwoSample(
        odds_times(*_WORSE_ODDS),
        [1] * 4,
        worse=True,
        prior_mean=_tails(quantiles),
        shape=(*shape, len(quantiles)),
        reserve=_RESERVE,
    )


def latency_fine(quantiles: Sequence[str], *, shape: tuple[int, ...] = ()) -> TwoSample:
    """Null: the candidate (divided by 1 + margin) exceeds a quantile at least as often; one process each."""
    return TwoSample(
        times(0.75, 0.4), [1, 1], worse=False, prior_mean=_tails(quantiles), shape=(*shape, len(quantiles))
    )


def quality_worse(policy: Canary, *, prior_mean: float = 0.1, shape: tuple[int, ...] = ()) -> TwoSample:
    """Null: the candidate's badness by labels exceeds the champion's by the tolerance at most."""
    return TwoSample(
        odds_times(1.2, *_WORSE_ODDS),
        [1] * 5,
        worse=True,
        excess=policy.quality.tolerance if policy.quality else 0.0,
        prior_mean=prior_mean,
        shape=shape,
        reserve=_RESERVE,
    )


def quality_fine(allowed: float, *, prior_mean: float = 0.1) -> TwoSample:
    """Null: the candidate's badness by labels exceeds the champion's by the margin at least."""
    return TwoSample(
        below(allowed, 0.7 * allowed), [1, 1], worse=False, excess=allowed, prior_mean=prior_mean
    )


def _tails(quantiles: Sequence[str]) -> FloatArray:
    return np.array([tail_of(name) for name in quantiles], dtype=np.float64)


class Evidence:
    """The e-processes of one release. State depends on the policy's size, not on the traffic."""

    def __init__(self, policy: Canary, thresholds: LatencyThresholds, *, quality: bool = False) -> None:
        self._policy = policy
        self._quantiles = thresholds.names
        self._budgets = tuple(budget_limits(policy))
        self._log_promote = math.log(1 / policy.false_promote)
        self.strata = Strata()
        self._worse: dict[str, TwoSample] = {ERRORS: errors_worse(policy)}
        if self._quantiles:
            self._worse["latency"] = latency_worse(self._quantiles)
        if quality:
            self._worse[QUALITY] = quality_worse(policy)
        allowed = policy.quality.margin if quality and policy.quality else None
        self._fine_quality = None if allowed is None else quality_fine(allowed)
        self._reported = {gauge: SampleRatio() for gauge in policy.measures}
        self._fine_errors = errors_fine(policy)
        self._fine_latency = latency_fine(self._quantiles)
        limits = _tails(self._budgets)
        self._over_budget = OneSample(limits, odds_times(*_WORSE_ODDS), [1] * 4, worse=True)
        self._in_budget = OneSample(limits, times(0.75, 0.4, 0.1), [1] * 3, worse=False)
        self._champion_in_budget = OneSample(limits, times(0.75, 0.4, 0.1), [1] * 3, worse=False)

    def enter_step(self) -> None:
        """A new share: put some of the reserves on fresh bets, for harm that only shows now."""
        for process in self._worse.values():
            process.wealth.stake(RESTAKE_AT_STEP)

    def play(self, group: UnitGroup) -> int:
        """Bet on one group of closed units, with its own pi; returns how many were the candidate's."""
        if not group.candidate and not group.champion:
            return 0
        pairs = {
            ERRORS: _pair(group, [ERRORS]),
            "latency": _pair(group, [tolerance(name) for name in self._quantiles]),
            QUALITY: _pair(group, [QUALITY]),
        }
        for family, process in self._worse.items():
            candidate, champion = pairs[family]
            single = family != "latency"
            process.update(
                candidate[0] if single else candidate, champion[0] if single else champion, group.pi
            )
        self._fine_errors.update(pairs[ERRORS][0][0], pairs[ERRORS][1][0], group.pi)
        self._fine_latency.update(*_pair(group, [margin(name) for name in self._quantiles]), group.pi)
        if self._fine_quality is not None:
            self._fine_quality.update(pairs[QUALITY][0][0], pairs[QUALITY][1][0], group.pi)
        for gauge, ratio in self._reported.items():
            counted = (*group.candidate, *group.champion)
            metrics = [name for name in counted if gauge_of(name.partition("/")[2]) == gauge]
            candidate, champion = _pair(group, metrics[:1])
            ratio.update(float(candidate.sum()), float(champion.sum()), group.pi)
        candidate, champion = _pair(group, [budget(name) for name in self._budgets])
        self._over_budget.update(candidate)
        self._in_budget.update(candidate)
        self._champion_in_budget.update(champion)
        self.strata.add(group)
        units = int(pairs[ERRORS][0].sum())
        for process in self._worse.values():
            process.wealth.stake(-math.expm1(-RESTAKE_PER_UNIT * units))
        return units

    def harms(self) -> list[Question]:
        """Every e-process that may roll back, with its weight in the weighted mean.

        Evidence without observed harm is left out (which can only lower it): where candidate units
        are missing or hang, the champion's alone would look like evidence against the candidate.
        """
        families = [*self._worse] + (["latency"] if self._budgets and not self._quantiles else [])
        total = sum(FAMILY_WEIGHTS[family] for family in families)
        harms: list[Question] = []
        for family in families:
            weight = FAMILY_WEIGHTS[family] / total
            if family == "latency":
                harms += self._latency_harms(weight)
            else:
                harms.append(Question(family, float(self._worse[family].log_e), weight))
        return [
            harm
            if self._is_seen(harm.metric) and not self._is_uneven(harm.metric)
            else replace(harm, log_e=min(harm.log_e, 0.0))
            for harm in harms
        ]

    def _latency_harms(self, weight: float) -> list[Question]:
        """Service time and the measures share the family's weight; budgets take a part of each one's."""
        gauges = list(dict.fromkeys(gauge_of(name) for name in (*self._quantiles, *self._budgets)))
        helps = np.minimum(self._over_budget.log_e, self._champion_in_budget.log_e)
        harms: list[Question] = []
        for gauge in gauges:
            relative = [index for index, name in enumerate(self._quantiles) if gauge_of(name) == gauge]
            absolute = [index for index, name in enumerate(self._budgets) if gauge_of(name) == gauge]
            own = weight / len(gauges)
            of_budget = (_BUDGET_WEIGHT if relative else 1.0) if absolute else 0.0
            for index in relative:
                log_e = float(self._worse["latency"].log_e[index])
                share = own * (1 - of_budget) / len(relative)
                harms.append(Question(tolerance(self._quantiles[index]), log_e, share))
            for index in absolute:
                share = own * of_budget / len(absolute)
                harms.append(Question(budget(self._budgets[index]), float(helps[index]), share))
        return harms

    def _is_uneven(self, metric: str) -> bool:
        """Whether the versions report this measure at different rates, so that nothing can be compared."""
        ratio = self._reported.get(gauge_of(metric.partition("/")[2]))
        return ratio is not None and ratio.log_e >= _LOG_UNEVEN

    def _is_seen(self, metric: str) -> bool:
        difference = self.strata.contrast(metric).difference
        return difference is not None and difference > 0

    def required(self, pi: float) -> list[Question]:
        """Every e-process that promotion needs, with the candidate units it is expected to need still."""
        needed = self._log_promote
        champion, candidate = self._rates([ERRORS], expected=1.0)
        growth = self._fine_errors.expected_growth(candidate[0], champion[0], pi)
        eta = units_to_go(self._fine_errors.wealth.log_bets, growth, needed)
        required = [Question(ERRORS, float(self._fine_errors.log_e), eta=eta)]
        if self._quantiles:
            champion, candidate = self._rates([margin(name) for name in self._quantiles], expected=0.6)
            growth = self._fine_latency.expected_growth(candidate, champion, pi)
            for index, name in enumerate(self._quantiles):
                if name in required_quantiles(self._policy):
                    eta = units_to_go(self._fine_latency.wealth.log_bets[index], growth[index], needed)
                    required.append(Question(margin(name), float(self._fine_latency.log_e[index]), eta=eta))
        if self._budgets:
            _, candidate = self._rates([budget(name) for name in self._budgets], expected=1.0)
            growth = self._in_budget.expected_growth(candidate)
            for index, name in enumerate(self._budgets):
                eta = units_to_go(self._in_budget.wealth.log_bets[index], growth[index], needed)
                required.append(Question(budget(name), float(self._in_budget.log_e[index]), eta=eta))
        if self._fine_quality is not None:
            champion, candidate = self._rates([QUALITY], expected=1.0)
            growth = self._fine_quality.expected_growth(candidate[0], champion[0], pi)
            eta = units_to_go(self._fine_quality.wealth.log_bets, growth, needed)
            note = "" if self.strata.units(QUALITY)[0] else _NO_LABELS
            required.append(Question(QUALITY, float(self._fine_quality.log_e), eta=eta, note=note))
        return [self._doubted(question) for question in required]

    def failures_to(self, log_needed: float, pi: float) -> float | None:
        """How many candidate units in a row that fail would alone bring the mean of harms to this level."""
        worse = self._worse[ERRORS]
        stake, _, centre, _ = worse.bets(pi)
        families = [*self._worse] + (["latency"] if self._budgets and not self._quantiles else [])
        weight = FAMILY_WEIGHTS[ERRORS] / sum(FAMILY_WEIGHTS[family] for family in families)
        growth = np.log1p(stake * (1 - centre))
        return units_to_go(worse.wealth.log_bets, growth, log_needed - math.log(weight))

    def _doubted(self, question: Question) -> Question:
        """Proof from a measure that is not reported alike counts for nothing."""
        if not self._is_uneven(question.metric):
            return question
        units = self.strata.units(question.metric)
        note = f"one version reports it more often ({units[0]} candidate, {units[1]} champion units)"
        return replace(question, log_e=min(question.log_e, 0.0), eta=None, note=note)

    def _rates(self, metrics: Sequence[str], *, expected: float) -> tuple[FloatArray, FloatArray]:
        """Rates to plan with: champion's, and candidate's drawn towards `expected` times it by 20 units."""
        champion, candidate = np.zeros(len(metrics)), np.zeros(len(metrics))
        for index, metric in enumerate(metrics):
            contrast = self.strata.contrast(metric)
            champion[index] = 0.0 if contrast.champion is None else contrast.champion
            bad = contrast.units * (contrast.candidate or 0.0)
            candidate[index] = (bad + 20 * expected * champion[index]) / (contrast.units + 20)
        return champion, candidate


def _pair(group: UnitGroup, metrics: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    """Counts of both arms, each of shape (metrics, levels); absent metrics are zero."""
    nothing = (0,) * LEVELS.size
    shape = (len(metrics), LEVELS.size)
    candidate = np.array([group.candidate.get(name, nothing) for name in metrics], np.float64).reshape(shape)
    champion = np.array([group.champion.get(name, nothing) for name in metrics], np.float64).reshape(shape)
    return candidate, champion


def log_mean(questions: list[Question]) -> float:
    """Log of the weighted mean of these e-values."""
    return float(combine([q.log_e for q in questions], [q.weight for q in questions]))
