"""How others decide, re-implemented from their descriptions, over many streams at once.

Windowed rules see windows of `WINDOW` expected candidate units; each rule returns which streams
it rolls back now. All see errors only.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.decisions.streams import Counts

BoolArray = NDArray[np.bool_]
WINDOW = 200
ALPHA = 0.01


class Rule(Protocol):
    """A way to decide."""

    name: str

    def look(self, counts: Counts) -> BoolArray: ...


class _Windowed:
    """Adds looks up to windows and judges whole windows."""

    def __init__(self, streams: int, looks_per_window: int) -> None:
        self.streams = streams
        self._looks_per_window = looks_per_window
        self._looks = 0
        self._sums = np.zeros((4, streams))

    def look(self, counts: Counts) -> BoolArray:
        self._sums += (counts.units_b, counts.errors_b, counts.units_a, counts.errors_a)
        self._looks += 1
        if self._looks % self._looks_per_window:
            return np.zeros(self.streams, np.bool_)
        sums, self._sums = self._sums, np.zeros((4, self.streams))
        return self.window(sums[1] / np.maximum(sums[0], 1), sums[3] / np.maximum(sums[2], 1))

    def window(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> BoolArray:
        raise NotImplementedError


class Flagger(_Windowed):
    """Success rate at least 99% in each interval; 10 failed checks roll back."""

    name = "Flagger-style: success 99%, threshold 10"

    def __init__(self, streams: int, looks_per_window: int) -> None:
        super().__init__(streams, looks_per_window)
        self._failed = np.zeros(streams)

    def window(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> BoolArray:
        self._failed += ours > 0.01
        return self._failed >= 10


class Argo(_Windowed):
    """Success rate at least 95% in each measurement; more than 3 failures roll back."""

    name = "Argo-style: success 95%, failure limit 3"

    def __init__(self, streams: int, looks_per_window: int) -> None:
        super().__init__(streams, looks_per_window)
        self._failed = np.zeros(streams)

    def window(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> BoolArray:
        self._failed += ours > 0.05
        return self._failed > 3


class FivePercent(_Windowed):
    """Rolls back at the first window with over 5% errors (`times` adds the latency half of the rule)."""

    name = "'error rate over 5%' in a window"

    def window(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> BoolArray:
        return ours > 0.05


class Kayenta(_Windowed):
    """Mann-Whitney of the windows' error rates at 98% confidence, with 25% tolerance of the location.

    The judge's algorithm from its description: canary points against baseline points so far, once
    there are 5; a metric is High where the test is significant and the means differ by more than a
    quarter. Looked at after every window, as its analyses are repeated.
    """

    name = "Kayenta-style: Mann-Whitney a window (re-implemented)"

    def __init__(self, streams: int, looks_per_window: int) -> None:
        super().__init__(streams, looks_per_window)
        self._ours: list[NDArray[np.float64]] = []
        self._theirs: list[NDArray[np.float64]] = []
        self._u = np.zeros(streams)

    def window(self, ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> BoolArray:
        for earlier in (*self._theirs, theirs):
            self._u += (ours > earlier) + 0.5 * (ours == earlier)
        for earlier in self._ours:
            self._u += (earlier > theirs) + 0.5 * (earlier == theirs)
        self._ours.append(ours)
        self._theirs.append(theirs)
        n = len(self._ours)
        if n < 5:
            return np.zeros(self.streams, np.bool_)
        z = (self._u - n * n / 2) / math.sqrt(n * n * (2 * n + 1) / 12)
        higher = np.mean(self._ours, axis=0) > 1.25 * np.mean(self._theirs, axis=0)
        return (z > norm.ppf(0.99)) & higher


class _Pooled:
    """Keeps the totals of the whole release, whatever the share was."""

    def __init__(self, streams: int) -> None:
        self._sums = np.zeros((4, streams))

    def add(self, counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Difference of the pooled rates, and its variance."""
        self._sums += (counts.units_b, counts.errors_b, counts.units_a, counts.errors_a)
        n_b, k_b, n_a, k_a = self._sums
        rate = np.clip((k_b + k_a) / (n_b + n_a), 1e-6, 1 - 1e-6)
        variance = rate * (1 - rate) * (1 / np.maximum(n_b, 1) + 1 / np.maximum(n_a, 1))
        return k_b / np.maximum(n_b, 1) - k_a / np.maximum(n_a, 1), variance


class PeekedZ(_Pooled):
    """A one-sided z-test at 1%, looked at every time."""

    name = "z-test at 1%, every look"

    def look(self, counts: Counts) -> BoolArray:
        difference, variance = self.add(counts)
        return difference > norm.ppf(1 - ALPHA) * np.sqrt(variance)


class GroupSequential(_Pooled):
    """O'Brien-Fleming at 1% one-sided, spending over the planned number of looks."""

    name = "group sequential (O'Brien-Fleming)"

    def __init__(self, streams: int, looks: int) -> None:
        super().__init__(streams)
        self._planned, self._looks = looks, 0

    def look(self, counts: Counts) -> BoolArray:
        self._looks += 1
        difference, variance = self.add(counts)
        bound = norm.ppf(1 - ALPHA / 2) * math.sqrt(self._planned / self._looks)
        return difference > bound * np.sqrt(variance)


class MixtureSprt(_Pooled):
    """mSPRT with a normal mixture on the difference of the pooled rates (Johari et al.)."""

    name = "mSPRT"

    def look(self, counts: Counts) -> BoolArray:
        difference, variance = self.add(counts)
        spread = 0.01**2
        log_ratio = 0.5 * np.log(variance / (variance + spread))
        log_ratio += spread * difference**2 / (2 * variance * (variance + spread))
        return (log_ratio >= math.log(1 / ALPHA)) & (difference > 0)


def all_rules(streams: int, looks: int, per_look: int) -> list[Rule]:
    """Every peer, ready for looks of `per_look` expected candidate units."""
    window = max(WINDOW // per_look, 1)
    return [
        Flagger(streams, window),
        Argo(streams, window),
        FivePercent(streams, window),
        Kayenta(streams, window),
        PeekedZ(streams),
        GroupSequential(streams, looks),
        MixtureSprt(streams),
    ]
