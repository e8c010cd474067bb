"""How far apart the two versions are: rates of both arms and an interval of the difference.

For people to read, beside the e-values that decide. Strata are the units of one assignment
probability; their differences are averaged with the candidate's units as weights, so a rate that
drifted while the share rose does not show up as a difference (counts are never pooled).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.looks import UnitGroup
from evals.sequential import LEVELS, FloatArray

_LOOKS_BEST_AT_UNITS = 500.0
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Contrast:
    """Mean badness of both arms; candidate minus champion with its bounds; None without units.

    `low` and `high` form an asymptotic confidence sequence (Waudby-Smith et al.,
    arXiv:2103.06476): they hold at every look together with 95% confidence, so they are wider
    than an interval that was looked at once.
    """

    units: int
    candidate: float | None
    champion: float | None
    low: float | None
    high: float | None
    difference: float | None = None

    @property
    def text(self) -> str:
        """For a reason: 'candidate 5.10% against champion 1.00% (+2.9 to +5.3 points, 95% at every look)'."""
        if self.candidate is None or self.champion is None:
            return "one version has no units yet"
        text = f"candidate {self.candidate:.2%} against champion {self.champion:.2%}"
        if self.low is None or self.high is None:
            return text
        return f"{text} ({100 * self.low:+.1f} to {100 * self.high:+.1f} points, 95% at every look)"


class Strata:
    """Running moments by metric and pi; bounded by the number of distinct pi."""

    def __init__(self) -> None:
        self._moments: dict[str, dict[float, FloatArray]] = {}
        self._contrasts: dict[str, Contrast] = {}

    def add(self, group: UnitGroup) -> None:
        """Count one group of closed units."""
        self._contrasts.clear()
        for arm, counts_by_metric in enumerate((group.candidate, group.champion)):
            for metric, counts in counts_by_metric.items():
                stratum = self._moments.setdefault(metric, {}).setdefault(group.pi, np.zeros((2, 3)))
                levels: NDArray[np.int64] = np.asarray(counts, np.int64)
                stratum[arm] += (levels.sum(), levels @ LEVELS, levels @ LEVELS**2)

    def units(self, metric: str) -> tuple[int, int]:
        """Closed units of candidate and champion."""
        total = sum(self._moments.get(metric, {}).values(), np.zeros((2, 3)))
        return int(total[0, 0]), int(total[1, 0])

    def contrast(self, metric: str) -> Contrast:
        """The difference, averaged over strata that have both arms."""
        if metric not in self._contrasts:
            strata = [stratum.tolist() for stratum in self._moments.get(metric, {}).values()]
            self._contrasts[metric] = _contrast(strata)
        return self._contrasts[metric]


def _contrast(strata: list[list[list[float]]]) -> Contrast:
    """From strata of two arms (candidate, champion), each with its units, sum and sum of squares."""
    units = [sum(stratum[arm][0] for stratum in strata) for arm in (0, 1)]
    sums = [sum(stratum[arm][1] for stratum in strata) for arm in (0, 1)]
    means = [sums[arm] / units[arm] if units[arm] else None for arm in (0, 1)]
    both = [stratum for stratum in strata if stratum[0][0] > 0 and stratum[1][0] > 0]
    if not both:
        return Contrast(int(units[0]), means[0], means[1], None, None)
    weight = sum(stratum[0][0] for stratum in both)
    difference, variance = 0.0, 0.0
    for stratum in both:
        share = stratum[0][0] / weight
        (n_b, sum_b, _), (n_a, sum_a, _) = stratum
        difference += share * (sum_b / n_b - sum_a / n_a)
        # Half a bad and half a good unit more: no interval of width 0 after clean units only.
        smooth = sum(
            ((squares + 0.5) / (n + 1) - ((total + 0.5) / (n + 1)) ** 2) / n for n, total, squares in stratum
        )
        variance += share**2 * smooth
    half = math.sqrt(variance) * _sequence_width(weight)
    low, high = max(difference - half, -1.0), min(difference + half, 1.0)
    return Contrast(int(units[0]), means[0], means[1], low, high, difference)


def _sequence_width(units: float) -> float:
    """Half-width in standard errors of the confidence sequence, tightest near 500 units."""
    scaled = units / _LOOKS_BEST_AT_UNITS
    return math.sqrt((1 + 1 / scaled) * math.log((scaled + 1) / (1 - _CONFIDENCE) ** 2))
