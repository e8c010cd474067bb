"""Paired intervals: by how much do two versions differ on the same rows?

Both versions are resampled with the same rows, so what is hard for both cancels. Up to 5,000
rows by the bootstrap (all resamples as one product of weights and row moments); above, where
means are normal for all purposes and resampling would take seconds, by draws of the means from
their normal distribution. Reproducible: the generator is seeded by the data's digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.metrics import FloatArray, Moments

RESAMPLES = 2_000
_ROWS_RESAMPLED_MAX = 5_000
_RESAMPLES_OF_CALLABLE = 200
_WEIGHTS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a difference (candidate minus champion), in the metric's unit."""

    low: float
    high: float


def generator(digest: str, *parts: str) -> np.random.Generator:
    """A generator that depends on the data and on what it is for, on nothing else."""
    seed = hashlib.sha256("\n".join((digest, *parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(seed[:8], "big"))


def sample_rows(rows: int, most: int, digest: str) -> NDArray[np.int64] | None:
    """Sorted row numbers of a sample without replacement; None where all rows fit."""
    if rows <= most:
        return None
    return np.sort(generator(digest, "rows").choice(rows, size=most, replace=False))


def moment_interval(
    candidate: Moments, champion: Moments, *, confidence: float, rng: np.random.Generator
) -> Interval:
    """Interval of the difference of a metric that is a function of means over rows."""
    split = candidate.rows.shape[1]
    means = _resampled_means(np.concatenate([candidate.rows, champion.rows], axis=1), rng)
    differences = candidate.of(means[:, :split]) - champion.of(means[:, split:])
    return _percentiles(differences, confidence)


def resampled_interval(
    difference: Callable[[NDArray[np.int64]], float],
    rows: int,
    *,
    confidence: float,
    rng: np.random.Generator,
) -> Interval:
    """Interval of any paired difference by calling it on resampled row numbers, shape (rows,)."""
    draws = [difference(rng.integers(0, rows, rows)) for _ in range(_RESAMPLES_OF_CALLABLE)]
    return _percentiles(np.asarray(draws, np.float64), confidence)


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


def _percentiles(differences: FloatArray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Interval(float(low), float(high))
