"""Anytime-valid tests on counts: evidence that may be looked at as often as one likes.

An e-process is a gambler's wealth in a game that is fair or unfavourable while the null
hypothesis holds. It starts at 1; by Ville's inequality P(it ever reaches 1/alpha) <= alpha, at any
number of looks and any stopping rule. All bets here are predictable: they use past data only.

Two-sample game (`TwoSample`). Units are assigned to the candidate with a known probability pi,
each gives a badness y in [0, 1]. For the null E[y|candidate] <= ratio*E[y|champion] + excess and
any stake s >= 0, a candidate unit multiplies the wealth by 1 + s*(y - c_b) and a champion unit by
1 - s*odds*(y - c_a), with odds = ratio*pi/(1 - pi) and c_b = ratio*c_a + excess. The expectation
is 1 + pi*s*(E[y|candidate] - ratio*E[y|champion] - excess) <= 1 whatever c_a is and whatever the
champion's mean does over time; s <= 0 tests the opposite null. With ratio 1, excess 0 and 0/1
values this is Turner, Ly and Grünwald (arXiv:2106.02693); bounded values follow Waudby-Smith and
Ramdas (arXiv:2010.09686). Mixtures of e-processes, and wealth moved between bets or kept in
reserve, stay e-processes (Vovk and Wang, arXiv:1912.06116). Hence the factor of a batch needs the
pi of that batch: counts are never pooled over different shares.

Shapes: every process can be an array of independent processes of `shape` (latency quantiles,
simulated streams); K bets and L levels are the last axes. Input is sufficient statistics: how
many units had which level. All logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Alternatives: TypeAlias = Callable[[FloatArray], FloatArray]
"""Candidate means to bet on, shape (*shape, K), for the null's boundary, shape (*shape)."""

LEVELS: FloatArray = np.linspace(0.0, 1.0, 21)
"""A unit's badness, quantised to twentieths; 0 and 1 are the 0/1 case."""
BINARY: FloatArray = np.array([0.0, 1.0])

_STAKE_LIMIT = 0.95
"""Share of the wealth that the worst outcome may cost: no factor is under 0.05."""
_MEAN_MIN = 1e-6
_DISPERSION_MIN = 0.02


def times(*factors: float, most: float = 0.95) -> Alternatives:
    """Alternatives that are multiples of the null's boundary."""
    scale = np.asarray(factors, dtype=np.float64)
    return lambda boundary: np.minimum(boundary[..., None] * scale, most)


def odds_times(*factors: float) -> Alternatives:
    """Alternatives whose odds are multiples of the boundary's odds (stay below 1 for any boundary)."""
    scale = np.asarray(factors, dtype=np.float64)

    def rates(boundary: FloatArray) -> FloatArray:
        odds = (boundary / (1 - boundary))[..., None] * scale
        return odds / (1 + odds)

    return rates


def below(*distances: float) -> Alternatives:
    """Alternatives that lie under the null's boundary by fixed distances (in units of badness)."""
    distance = np.asarray(distances, dtype=np.float64)
    return lambda boundary: boundary[..., None] - distance


class Wealth:
    """Wealth of a mixture of bets, kept as logarithms; some of it may wait in reserve.

    A process that has watched a good candidate for long has lost nearly all that it bet, and would
    notice a later change only after winning it back. So `reserve` of the wealth is not bet at
    first, and `stake` puts a part of what is left of it on fresh bets: much of it when
    circumstances change (a new share), a little all the time. The reserve costs ln(1/(1 - reserve))
    once, and bounds how far the evidence falls behind.
    """

    __slots__ = ("_log_weights", "_reserve", "log_bets")

    def __init__(self, weights: ArrayLike, shape: tuple[int, ...] = (), *, reserve: float = 0.0) -> None:
        weight = np.asarray(weights, dtype=np.float64)
        self._log_weights: FloatArray = np.log(weight / weight.sum())
        self._reserve = 1.0
        self.log_bets: FloatArray = np.full((*shape, weight.size), -np.inf)
        """Log wealth of each bet, shape (*shape, K)."""
        self.stake(1.0 - reserve)
        self._reserve = reserve

    def stake(self, fraction: float) -> None:
        """Put this fraction of the reserve on fresh bets. May depend on the past only."""
        staked = self._reserve * fraction
        if staked > 0:
            self._reserve -= staked
            self.log_bets = np.logaddexp(self.log_bets, np.log(staked) + self._log_weights)

    def grow(self, log_factors: FloatArray) -> None:
        """Multiply every bet's wealth; shape (*shape, K)."""
        self.log_bets = self.log_bets + log_factors

    @property
    def reserve(self) -> float:
        """What is not bet yet, as a fraction of the first wealth."""
        return self._reserve

    def restore(self, log_bets: ArrayLike, reserve: float) -> None:
        """Go on from wealth that was stored: `log_bets` and `reserve` as they were read."""
        stored = np.asarray(log_bets, dtype=np.float64)
        if stored.shape != self.log_bets.shape:
            raise ValueError(f"Stored bets have shape {stored.shape}, these {self.log_bets.shape}.")
        self.log_bets, self._reserve = stored.copy(), reserve

    @property
    def log_e(self) -> FloatArray:
        """Log of the whole wealth, the e-value; shape (*shape)."""
        return self.with_factors(np.zeros_like(self._log_weights))

    def with_factors(self, log_factors: FloatArray) -> FloatArray:
        """What `log_e` would be after `grow(log_factors)`."""
        total = np.logaddexp.reduce(self.log_bets + log_factors, axis=-1)
        return np.logaddexp(total, np.log(self._reserve)) if self._reserve > 0 else total


def _log_growth(
    stakes: FloatArray, centres: FloatArray, counts: FloatArray, levels: FloatArray
) -> FloatArray:
    """Sum over units of log(1 + stake*(level - centre)); counts (*shape, L), result (*shape, K)."""
    log_factors = np.log1p(stakes[..., None] * (levels - centres[..., None]))
    return np.einsum("...kl,...l->...k", log_factors, counts)


class TwoSample:
    """Candidate against concurrent champion: is the mean badness over (or under) a boundary?

    `worse=True` tests the null mean_candidate <= ratio*mean_champion + excess, and its rejection
    says that the candidate is worse. `worse=False` tests the null mean_candidate >= the same
    boundary; its rejection says that the candidate is not worse than the margin.

    The champion's past mean (units of badness, starting from `prior_units` units at `prior_mean`,
    forgetting beyond `memory` units so that drift does not leave it behind) and its dispersion
    relative to 0/1 values set the stakes. They move power, never validity.
    """

    __slots__ = (
        "_alternatives",
        "_excess",
        "_memory",
        "_ratio",
        "_squares",
        "_sum",
        "_units",
        "_worse",
        "levels",
        "wealth",
    )

    def __init__(
        self,
        alternatives: Alternatives,
        weights: Sequence[float],
        *,
        worse: bool,
        prior_mean: ArrayLike,
        prior_units: float = 100.0,
        ratio: float = 1.0,
        excess: float = 0.0,
        memory: float = 20_000.0,
        shape: tuple[int, ...] = (),
        levels: FloatArray = LEVELS,
        reserve: float = 0.0,
    ) -> None:
        self._alternatives = alternatives
        self._worse = worse
        self._ratio = ratio
        self._excess = excess
        self._memory = memory
        self.levels = levels
        self._units: FloatArray = np.full(shape, prior_units, dtype=np.float64)
        self._sum: FloatArray = np.broadcast_to(
            np.asarray(prior_mean, np.float64) * prior_units, shape
        ).copy()
        self._squares: FloatArray = self._sum.copy()
        self.wealth = Wealth(weights, shape, reserve=reserve)

    @property
    def log_e(self) -> FloatArray:
        """Log e-value, shape (*shape)."""
        return self.wealth.log_e

    def bets(self, pi: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Stakes and centres (candidate stake, champion stake, candidate centre, champion centre).

        Each has shape (*shape, K). Only past champion data enter. Raises ValueError where pi is
        not strictly between 0 and 1: without a choice there is no comparison.
        """
        share = np.asarray(pi, dtype=np.float64)[..., None]
        if not np.all((share > 0) & (share < 1)):
            raise ValueError(f"pi is {pi!r}; a comparison needs 0 < pi < 1. Next: leave these units out.")
        past = np.clip(self._sum / self._units, _MEAN_MIN, 1 - _MEAN_MIN)
        variance = self._squares / self._units - past**2
        dispersion = np.clip(variance / (past * (1 - past)), _DISPERSION_MIN, 1.0)[..., None]
        boundary = np.clip(self._ratio * past + self._excess, _MEAN_MIN, 1 - _MEAN_MIN)
        alternative = np.clip(self._alternatives(boundary), _MEAN_MIN / 10, 1 - _MEAN_MIN / 10)
        # The centre that a likelihood ratio of the two hypotheses would use.
        centre_b = np.clip(
            boundary[..., None] + share * (alternative - boundary[..., None]), _MEAN_MIN, 1 - _MEAN_MIN
        )
        centre_a = (centre_b - self._excess) / self._ratio
        odds = self._ratio * share / (1 - share)
        stake = (alternative - centre_b) / (centre_b * (1 - centre_b) * dispersion)
        if self._worse:
            most = _STAKE_LIMIT * np.minimum(1 / centre_b, 1 / (odds * np.maximum(1 - centre_a, 1e-9)))
            stake = np.clip(stake, 0.0, most)
        else:
            most = _STAKE_LIMIT * np.minimum(1 / (1 - centre_b), 1 / (odds * np.maximum(centre_a, 1e-9)))
            stake = np.clip(stake, -most, 0.0)
        return stake, stake * odds, centre_b, centre_a

    def update(self, candidate: ArrayLike, champion: ArrayLike, pi: ArrayLike) -> None:
        """Play one batch: units at each level and arm, shapes (*shape, L), assigned with `pi`.

        The order of units within a batch does not matter. Batches with another pi are other calls.
        """
        units_b = np.asarray(candidate, dtype=np.float64)
        units_a = np.asarray(champion, dtype=np.float64)
        stake_b, stake_a, centre_b, centre_a = self.bets(pi)
        self.wealth.grow(
            _log_growth(stake_b, centre_b, units_b, self.levels)
            + _log_growth(-stake_a, centre_a, units_a, self.levels)
        )
        self._units = self._units + units_a.sum(axis=-1)
        self._sum = self._sum + units_a @ self.levels
        self._squares = self._squares + units_a @ self.levels**2
        keep = np.minimum(self._memory / self._units, 1.0)
        self._units, self._sum, self._squares = self._units * keep, self._sum * keep, self._squares * keep

    def expected_growth(
        self, candidate_mean: ArrayLike, champion_mean: ArrayLike, pi: ArrayLike
    ) -> FloatArray:
        """Expected log growth of each bet per candidate unit if values were 0/1 with these means.

        Shape (*shape, K). For planning only (`units_to_go`).
        """
        stake_b, stake_a, centre_b, centre_a = self.bets(pi)
        mean_b = np.asarray(candidate_mean, dtype=np.float64)[..., None]
        mean_a = np.asarray(champion_mean, dtype=np.float64)[..., None]
        share = np.asarray(pi, dtype=np.float64)[..., None]
        of_candidate = mean_b * np.log1p(stake_b * (1 - centre_b)) + (1 - mean_b) * np.log1p(
            -stake_b * centre_b
        )
        of_champion = mean_a * np.log1p(-stake_a * (1 - centre_a)) + (1 - mean_a) * np.log1p(
            stake_a * centre_a
        )
        return of_candidate + (1 - share) / share * of_champion


class OneSample:
    """One arm against a fixed mean: the candidate against an absolute budget.

    `worse=True` tests the null mean <= null, `worse=False` the null mean >= null. A unit
    multiplies the wealth by 1 + stake*(y - null), whose expectation is at most 1 under the null
    (Waudby-Smith and Ramdas); for 0/1 values it is the likelihood ratio.
    """

    __slots__ = ("_null", "_stakes", "levels", "wealth")

    def __init__(
        self,
        null: ArrayLike,
        alternatives: Alternatives,
        weights: Sequence[float],
        *,
        worse: bool,
        levels: FloatArray = LEVELS,
        reserve: float = 0.0,
    ) -> None:
        mean = np.clip(np.asarray(null, dtype=np.float64), _MEAN_MIN, 1 - _MEAN_MIN)
        alternative = alternatives(mean)
        self._null: FloatArray = mean[..., None]
        stake = (alternative - self._null) / (self._null * (1 - self._null))
        low, high = (0.0, _STAKE_LIMIT / self._null) if worse else (-_STAKE_LIMIT / (1 - self._null), 0.0)
        self._stakes: FloatArray = np.clip(stake, low, high)
        self.levels = levels
        self.wealth = Wealth(weights, mean.shape, reserve=reserve)

    @property
    def log_e(self) -> FloatArray:
        """Log e-value, shape (*shape)."""
        return self.wealth.log_e

    def update(self, units: ArrayLike) -> None:
        """Play one batch of units at each level, shape (*shape, L)."""
        self.wealth.grow(self._growth(units))

    def log_e_with(self, units: ArrayLike) -> FloatArray:
        """Log e-value if these units were played too, without playing them."""
        return self.wealth.with_factors(self._growth(units))

    def _growth(self, units: ArrayLike) -> FloatArray:
        centre = np.broadcast_to(self._null, self._stakes.shape)
        return _log_growth(self._stakes, centre, np.asarray(units, dtype=np.float64), self.levels)

    def expected_growth(self, mean: ArrayLike) -> FloatArray:
        """Expected log growth of each bet per unit if values were 0/1 with this mean; (*shape, K)."""
        rate = np.asarray(mean, dtype=np.float64)[..., None]
        return rate * np.log1p(self._stakes * (1 - self._null)) + (1 - rate) * np.log1p(
            -self._stakes * self._null
        )


class Paired:
    """Two answers to the same question: P(only the candidate bad) against P(only the champion bad).

    `worse=True` (margin 0) tests the null that among discordant pairs the candidate is the bad one
    at most half of the time: sum of w*(q/.5)^n10*((1-q)/.5)^n01 over q > 1/2. `worse=False` tests
    the null P(10) - P(01) >= margin with factors 1 + stake*(margin - d), d in {-1, 0, 1}: also
    agreeing pairs count in favour. Null per pair, so pairs need not be alike.
    """

    __slots__ = ("_log_factors", "wealth")

    def __init__(self, *, worse: bool, margin: float = 0.0, shape: tuple[int, ...] = ()) -> None:
        if worse:
            odds = np.array([0.6, 0.67, 0.75, 0.85, 0.95])
            factors = np.stack([2 * odds, 2 * (1 - odds), np.ones_like(odds)])
            weights = [0.2, 0.2, 0.2, 0.2, 0.2]
        else:
            stakes = np.array([0.1, 0.3, 0.6, 0.8, _STAKE_LIMIT]) / (1 - margin)
            factors = 1 + stakes * (margin - np.array([[1.0], [-1.0], [0.0]]))
            weights = [0.05, 0.1, 0.15, 0.2, 0.5]
        self._log_factors: FloatArray = np.log(
            factors
        )  # (3, K): only candidate bad, only champion bad, alike
        self.wealth = Wealth(weights, shape)

    @property
    def log_e(self) -> FloatArray:
        """Log e-value, shape (*shape)."""
        return self.wealth.log_e

    def update(self, candidate_only: ArrayLike, champion_only: ArrayLike, alike: ArrayLike) -> None:
        """Play one batch of pairs: numbers of each kind, each of shape (*shape)."""
        counts = np.stack(np.broadcast_arrays(candidate_only, champion_only, alike), axis=-1).astype(
            np.float64
        )
        self.wealth.grow(counts @ self._log_factors)

    def expected_growth(self, candidate_only: float, champion_only: float) -> FloatArray:
        """Expected log growth of each bet per pair, for the probabilities of discordant pairs; (K,)."""
        return (
            np.array([candidate_only, champion_only, 1 - candidate_only - champion_only]) @ self._log_factors
        )


class SampleRatio:
    """Does each arm report as many units as it was given?

    The null is that a unit is the candidate's with probability pi. A candidate whose crash loses
    its own log would otherwise look healthy. Bets on odds of being seen, in both directions.
    """

    __slots__ = ("_factors", "wealth")

    def __init__(self) -> None:
        self._factors = np.array([0.25, 0.5, 0.75, 0.9, 1.1, 1.5])
        self.wealth = Wealth([0.2, 0.2, 0.2, 0.15, 0.15, 0.1], reserve=0.5)

    @property
    def log_e(self) -> float:
        """Log e-value."""
        return float(self.wealth.log_e)

    def log_factors(self, candidate: float, champion: float, pi: float) -> FloatArray:
        """Log factor of each bet for these numbers of units; (K,)."""
        seen = pi * self._factors / (pi * self._factors + 1 - pi)
        return candidate * np.log(seen / pi) + champion * np.log((1 - seen) / (1 - pi))

    def update(self, candidate: float, champion: float, pi: float) -> None:
        """Play one batch of first-seen units."""
        self.wealth.grow(self.log_factors(candidate, champion, pi))

    def log_e_if_reported(self, candidate: float, champion: float, pi: float) -> float:
        """Log e-value if these units (seen in flight, not finished) had been reported as well.

        They may explain missing units, never add evidence: they did not all come just now.
        """
        return float(self.wealth.with_factors(np.minimum(self.log_factors(candidate, champion, pi), 0.0)))


def combine(log_es: ArrayLike, weights: ArrayLike) -> FloatArray:
    """Log of the weighted mean of e-values over the last axis: an e-value under any dependence."""
    weight = np.asarray(weights, dtype=np.float64)
    return np.logaddexp.reduce(np.log(weight / weight.sum()) + np.asarray(log_es, dtype=np.float64), axis=-1)


def units_to_go(log_bets: FloatArray, growth: FloatArray, log_needed: float) -> float | None:
    """Expected further units until one bet alone reaches `log_needed`; None if none grows.

    With nothing played yet this is n = (ln(1/alpha) + ln(1/w)) / KL. Both arrays have shape (K,).
    """
    if float(np.logaddexp.reduce(log_bets)) >= log_needed:
        return 0.0
    grows = growth > 0
    if not grows.any():
        return None
    return float(np.min((log_needed - log_bets[grows]) / growth[grows]))
