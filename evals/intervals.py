"""Paired intervals: by how much do two versions differ on the same rows?

Both versions are resampled with the same rows, so what is hard for both cancels. Up to 5,000
rows by the bootstrap (all resamples as one product of weights and row moments); above, where
means are normal for all purposes and resampling would take seconds, by draws of the means from
their normal distribution. Shares of right answers need no draws: they have a score interval that
also holds where the versions never or hardly ever disagree, of which resamples make certainty.
Reproducible: the generator is seeded by the data's digest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evals.metrics import FloatArray
from evals.moments import Moments

RESAMPLES = 2_000
_ROWS_RESAMPLED_MAX = 5_000
_RESAMPLES_OF_CALLABLE = 200
_WEIGHTS_AT_ONCE = 4_000_000
_DRAWS_IN_TAIL_MIN = 20


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a difference (candidate minus champion), in the metric's unit."""

    low: float
    high: float


class Difference(Protocol):
    """What is known of a difference: an interval of it at any two-sided confidence."""

    def interval(self, confidence: float) -> Interval: ...


@dataclass(frozen=True, slots=True)
class Draws:
    """A difference known by draws from its sampling distribution, shape (draws,)."""

    values: FloatArray

    def interval(self, confidence: float) -> Interval:
        """Percentiles; where a tail holds too few draws to have one, the normal distribution's."""
        from scipy.stats import norm

        tail = (1 - confidence) / 2
        if tail * self.values.size >= _DRAWS_IN_TAIL_MIN:
            low, high = np.quantile(self.values, [tail, 1 - tail])
            return Interval(float(low), float(high))
        middle, reach = float(self.values.mean()), float(norm.isf(tail) * self.values.std(ddof=1))
        return Interval(middle - reach, middle + reach)


@dataclass(frozen=True, slots=True)
class PairedShares:
    """Two shares of right answers to the same n questions, by the pairs that differ.

    `gained`: only the candidate was right; `lost`: only the champion was.
    """

    gained: int
    lost: int
    n: int

    def interval(self, confidence: float) -> Interval:
        """Tango's score interval of the difference (Statistics in Medicine 17, 1998).

        The differences that a score test at this confidence does not reject. Without a single
        pair that differs it is about z²/(n + z²) wide on each side, not zero.
        """
        from scipy.optimize import brentq
        from scipy.stats import norm

        z = float(norm.isf((1 - confidence) / 2))
        estimate = (self.gained - self.lost) / self.n

        def beyond(difference: float, side: float) -> float:
            return self._score(difference) - side * z

        low, high = -1.0, 1.0
        if estimate > -1:
            low = float(brentq(beyond, -1 + 1e-12, estimate, args=(1.0,), xtol=1e-9))  # pyright: ignore[reportArgumentType]
        if estimate < 1:
            high = float(brentq(beyond, estimate, 1 - 1e-12, args=(-1.0,), xtol=1e-9))  # pyright: ignore[reportArgumentType]
        return Interval(low, high)

    def _score(self, difference: float) -> float:
        """The test statistic of a difference, with the loss share that is likeliest under it."""
        n, gained, lost = self.n, self.gained, self.lost
        b = -gained - lost + (2 * n - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        return (gained - lost - n * difference) / math.sqrt(max(variance, 1e-300))


def generator(digest: str, *parts: str) -> np.random.Generator:
    """A generator that depends on the data and on what it is for, on nothing else."""
    seed = hashlib.sha256("\n".join((digest, *parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8], "big"))


def moment_draws(candidate: Moments, champion: Moments, *, rng: np.random.Generator) -> Draws:
    """The difference of a metric that is a function of means over rows."""
    split = candidate.rows.shape[1]
    means = _resampled_means(np.concatenate([candidate.rows, champion.rows], axis=1), rng)
    return Draws(candidate.of(means[:, :split]) - champion.of(means[:, split:]))


def resampled_draws(
    difference: Callable[[NDArray[np.int64]], float],
    rows: int,
    *,
    rng: np.random.Generator,
    groups: NDArray[np.int64] | None = None,
) -> Draws:
    """Any paired difference, by calling it on resampled row numbers; whole groups where codes are given."""
    draws: list[float] = []
    order = None if groups is None else np.argsort(groups, kind="stable")
    ends = None if groups is None else np.cumsum(np.bincount(groups))
    for _ in range(_RESAMPLES_OF_CALLABLE):
        if order is None or ends is None:
            chosen = rng.integers(0, rows, rows)
        else:
            picked = rng.integers(0, ends.size, ends.size)
            starts = np.r_[0, ends][picked]
            chosen = np.concatenate(
                [order[start:end] for start, end in zip(starts, ends[picked], strict=True)]
            )
        draws.append(difference(chosen))
    return Draws(np.asarray(draws, np.float64))


def _resampled_means(rows: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Means of RESAMPLES resamples, shape (RESAMPLES, k)."""
    n, k = rows.shape
    if n > _ROWS_RESAMPLED_MAX:
        covariance = np.atleast_2d(np.cov(rows, rowvar=False)) / n
        return rng.multivariate_normal(rows.mean(axis=0), covariance, size=RESAMPLES, method="eigh")
    means = np.empty((RESAMPLES, k))
    chunk = max(_WEIGHTS_AT_ONCE // n, 1)
    for start in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - start)
        drawn = rng.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = weights @ rows / n
    return means
