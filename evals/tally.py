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
        for value in np.unique(pi):
            side = candidate[pi == value]
            entered = self._entered.setdefault(float(value), np.zeros(2, np.int64))
            entered += (np.count_nonzero(side), np.count_nonzero(~side))

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
        for value in np.unique(pi):
            of_pi = pi == value
            for arm, side in enumerate((candidate, ~candidate)):
                rows = of_pi & side
                if not rows.any():
                    continue
                most, chance = whole[rows], dither[rows]
                for index, metric in enumerate(family.metrics):
                    self._add(float(value), arm, metric, _levels(bad[index][rows], most, chance))

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
    """How many means bad/most fall on each level."""
    counts = np.zeros(LEVELS.size, np.int64)
    between = (bad > 0) & (bad < most)
    counts[-1] = np.count_nonzero(bad >= most)
    counts[0] = bad.size - counts[-1]
    some = np.count_nonzero(between)
    if some:
        counts[0] -= some
        exact = np.round(bad[between] / most[between] * _STEPS, 9)
        floor = np.floor(exact)
        rounded = (floor + (dither[between] < exact - floor)).astype(np.int64)
        counts += np.bincount(rounded, minlength=LEVELS.size)
    return counts


def _rounded(bad: BadArray, scale: int) -> IntArray:
    """Levels of single values; the rounding is spread evenly over the values in their order."""
    exact = bad / scale * _STEPS
    floor = np.floor(exact)
    turn = (np.arange(bad.size) * 0.6180339887498949) % 1.0
    return np.bincount((floor + (turn < exact - floor)).astype(np.int64), minlength=LEVELS.size)
