"""The counts of one look while they are being made: units by pi, arm, metric and level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evals.badness import BadArray, BoolArray, Family, IntArray
from evals.looks import SERVICE, UnitGroup
from evals.sequential import LEVELS, FloatArray

_STEPS = LEVELS.size - 1


class Tally:
    """Counts of one look. Families share a group where their units had the same pi."""

    def __init__(self) -> None:
        self._counts: dict[float, tuple[dict[str, IntArray], dict[str, IntArray]]] = {}
        self._entered: dict[float, IntArray] = {}

    def enter(self, family: Family, pi: FloatArray, candidate: BoolArray) -> None:
        """First-seen units. Only the family that knows all requests tells the sample ratio."""
        if family.gauge != SERVICE:
            return
        shares, which = _distinct(pi)
        of_share = np.bincount(which, minlength=shares.size)
        ours = np.bincount(which[candidate], minlength=shares.size)
        for value, total, side in zip(shares.tolist(), of_share, ours, strict=True):
            entered = self._entered.setdefault(value, np.zeros(2, np.int64))
            entered += (side, total - side)

    def close(
        self,
        family: Family,
        key: NDArray[np.uint64],
        pi: FloatArray,
        candidate: BoolArray,
        count: NDArray[np.int32],
        bad: NDArray[np.int32],
    ) -> None:
        """Closed units with the sums of their values, shape (metrics, n), over `count` requests.

        The mean is rounded up or down to a level with the odds that keep its expectation, by the key.
        """
        dither = ((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)).astype(np.float64) / 2.0**53
        whole = count * family.scale
        shares, cell = _distinct(pi)
        cell = 2 * cell + ~candidate
        sizes = np.bincount(cell, minlength=2 * shares.size)
        for index, metric in enumerate(family.metrics):
            some = np.flatnonzero(bad[index] != 0)
            level = _levels(bad[index][some], whole[some], dither[some])
            counts = np.bincount(cell[some] * LEVELS.size + level, minlength=sizes.size * LEVELS.size)
            counts = counts.reshape(sizes.size, LEVELS.size)
            counts[:, 0] += sizes - counts.sum(axis=1)
            for at in np.flatnonzero(sizes):
                self._add(float(shares[at // 2]), int(at % 2), metric, counts[at])

    def close_requests(self, family: Family, share: FloatArray, candidate: BoolArray, bad: BadArray) -> None:
        """Units that are single requests."""
        for value in np.unique(share):
            for arm, side in enumerate((candidate, ~candidate)):
                rows = (share == value) & side
                size = np.count_nonzero(rows)
                if not size:
                    continue
                for index, metric in enumerate(family.metrics):
                    if family.scale == 1:
                        ones = np.count_nonzero(bad[index][rows])
                        counts = np.zeros(LEVELS.size, np.int64)
                        counts[0], counts[-1] = size - ones, ones
                    else:
                        counts = _rounded(bad[index][rows], family.scale)
                    self._add(float(value), arm, metric, counts)

    def close_counted(
        self, family: Family, share: float, ones: IntArray, count: int, *, candidate: bool
    ) -> None:
        """The same from counts: of `count` requests, `ones` (one entry a metric) were bad."""
        if not count:
            return
        entered = self._entered.setdefault(share, np.zeros(2, np.int64))
        entered[0 if candidate else 1] += count
        for metric, bad in zip(family.metrics, ones, strict=True):
            counts = np.zeros(LEVELS.size, np.int64)
            counts[0], counts[-1] = count - bad, bad
            self._add(share, 0 if candidate else 1, metric, counts)

    def _add(self, pi: float, arm: int, metric: str, counts: IntArray) -> None:
        of_arm = self._counts.setdefault(pi, ({}, {}))[arm]
        of_arm[metric] = of_arm[metric] + counts if metric in of_arm else counts

    def groups(self) -> tuple[UnitGroup, ...]:
        """By rising pi."""
        found: list[UnitGroup] = []
        for pi in sorted({*self._counts, *self._entered}):
            entered = self._entered.get(pi, np.zeros(2, np.int64))
            candidate, champion = (
                {metric: tuple(counts.tolist()) for metric, counts in arm.items()}
                for arm in self._counts.get(pi, ({}, {}))
            )
            found.append(UnitGroup(pi, int(entered[0]), int(entered[1]), candidate, champion))
        return tuple(found)


def _levels(bad: NDArray[np.int32], most: NDArray[np.int32], dither: FloatArray) -> IntArray:
    """The level on which each mean bad/most falls."""
    if np.array_equal(bad, most):
        return np.full(bad.size, _STEPS)
    exact = np.round(bad / most * _STEPS, 9)
    floor = np.floor(exact)
    return (floor + (dither < exact - floor)).astype(np.int64)


def _distinct(values: FloatArray) -> tuple[FloatArray, IntArray]:
    """The values that there are, rising, and which of them each one is."""
    if values.size and np.all(values == values[0]):
        return values[:1], np.zeros(values.size, np.int64)
    return np.unique(values, return_inverse=True)


def _rounded(bad: BadArray, scale: int) -> IntArray:
    """Levels of single values; the rounding is spread evenly over the values in their order."""
    exact = bad / scale * _STEPS
    floor = np.floor(exact)
    turn = (np.arange(bad.size) * 0.6180339887498949) % 1.0
    return np.bincount((floor + (turn < exact - floor)).astype(np.int64), minlength=LEVELS.size)
