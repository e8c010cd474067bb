"""Evidence from platforms that only count: whole periods with a histogram of their latencies.

A managed platform tells, for each version and period, how many requests came, how many failed and
how many took how long. The requests were split one by one, so each is a unit, and the period's
share is its pi. A latency limit that lies inside a bin is read in favour of the null that is tested: for
harm the candidate's doubtful requests count as fast and the champion's as slow, for
non-inferiority the other way round. So coarse bins cost power and never validity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.policy import Canary
from evals.looks import (
    ERRORS,
    QUANTILES,
    Counts,
    LatencyThresholds,
    LookStatistics,
    UnitGroup,
    budget,
    margin,
    time_budgets,
    tolerance,
)
from evals.sequential import LEVELS
from evals.watch import Level, WatchCounts

_MINUTE_S = 60
GRID_MS: tuple[float, ...] = tuple(float(f"{0.5 * 1.15**step:.4g}") for step in range(84))
"""Edges from half a millisecond to about a minute, 15% apart: for what is not known beforehand."""


@dataclass(frozen=True, slots=True)
class ArmPeriod:
    """One version's counts of one period, at the share `pi` that held for all of it.

    `counts` has one entry more than `edges_ms` (shape (k,), ms, rising): requests up to each edge,
    then those above the last. `start` is in seconds since the epoch.
    """

    pi: float
    candidate: bool
    start: float
    requests: int
    failed: int
    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]

    def slower(self, limit_ms: float, *, at_most: bool) -> int:
        """Requests over a limit, as many as there may be (`at_most`) or as there are for certain.

        A request without a latency was never answered: it counts as slow.
        """
        edges = np.asarray(self.edges_ms, dtype=np.float64)
        counts = np.asarray(self.counts, dtype=np.int64)
        lower = np.concatenate([[0.0], edges])
        upper = np.concatenate([edges, [np.inf]])
        over = upper > limit_ms * (1 + 1e-9) if at_most else lower >= limit_ms * (1 - 1e-9)
        unmeasured = max(self.requests - int(counts.sum()), 0)
        return min(int(counts[over].sum()) + unmeasured, self.requests)


def wanted_edges(policy: Canary, thresholds: LatencyThresholds) -> tuple[float, ...]:
    """The edges (ms) with which no limit of the canary lies inside a bin."""
    slacks = (1.0, 1 + policy.latency.tolerance, 1 + policy.latency.margin)
    limits = {limit * slack for limit in thresholds.ms.values() for slack in slacks}
    return tuple(sorted(limits | set(time_budgets(policy).values())))


def past_thresholds(periods: Sequence[ArmPeriod]) -> LatencyThresholds:
    """Thresholds from the champion's past periods: for each quantile the edge that first reaches it.

    As with single requests, a quantile q needs 1/(1 - q) requests (at least 10).
    """
    edges = sorted({edge for period in periods for edge in period.edges_ms})
    total = sum(sum(period.counts) for period in periods)
    known: dict[str, float] = {}
    for name, q in QUANTILES.items():
        if total < max(10.0, 1 / (1 - q) - 1e-6):
            continue
        for edge in edges:
            above = sum(period.slower(edge, at_most=True) for period in periods)
            if above <= (1 - q) * total:
                known[name] = edge
                break
    return LatencyThresholds(known)


def period_statistics(
    policy: Canary, thresholds: LatencyThresholds, periods: Sequence[ArmPeriod]
) -> LookStatistics:
    """The counts of one look, from all periods that became complete since the last one.

    Periods at a share of 0 or 1 chose nothing and are no evidence; those of different shares
    are never added together.
    """
    drawn = [period for period in periods if 0 < period.pi < 1 and period.requests > 0]
    groups: list[UnitGroup] = []
    for pi in sorted({period.pi for period in drawn}):
        ours = [period for period in drawn if period.pi == pi and period.candidate]
        theirs = [period for period in drawn if period.pi == pi and not period.candidate]
        groups.append(
            UnitGroup(
                pi,
                sum(period.requests for period in ours),
                sum(period.requests for period in theirs),
                _levels(policy, thresholds, ours, candidate=True),
                _levels(policy, thresholds, theirs, candidate=False),
            )
        )
    ours = sum(period.requests for period in drawn if period.candidate)
    return LookStatistics(tuple(groups), ours, sum(period.requests for period in drawn) - ours)


def watch_counts(periods: Sequence[ArmPeriod], levels: tuple[Level, ...]) -> WatchCounts:
    """What a watch sees of the version that serves; `pi` and `candidate` are not asked.

    A request that is both slow and failed is counted in both numbers, so the union is not known: the larger
    of the two is what is certain.
    """
    failed = [period.failed for period in periods]
    bad: dict[str, int] = {}
    slow: dict[str, dict[int, tuple[int, int]]] = {}
    for level in levels:
        if level.name == ERRORS:
            bad[ERRORS] = sum(failed)
        elif level.budget_ms is not None:
            limit = level.budget_ms
            late = [max(one.slower(limit, at_most=False), one.failed) for one in periods]
            bad[level.name] = sum(late)
            slow[level.name] = _by_minute(periods, late)
    requests = sum(period.requests for period in periods)
    return WatchCounts(requests, bad, 0, (), _by_minute(periods, failed), slow)


def _by_minute(periods: Sequence[ArmPeriod], bad: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Requests, and the bad ones among them (one number a period), by minute."""
    minutes: dict[int, tuple[int, int]] = {}
    for period, count in zip(periods, bad, strict=True):
        minute = int(period.start // _MINUTE_S)
        total, before = minutes.get(minute, (0, 0))
        minutes[minute] = (total + period.requests, before + count)
    return minutes


def _levels(
    policy: Canary, thresholds: LatencyThresholds, periods: Sequence[ArmPeriod], *, candidate: bool
) -> dict[str, Counts]:
    """One arm's units of each metric, by level of badness."""
    limits = {ERRORS: (0.0, False)}
    slack = policy.latency
    for name, ms in thresholds.ms.items():
        limits[tolerance(name)] = (ms * (1 + slack.tolerance) if candidate else ms, not candidate)
        limits[margin(name)] = (ms * (1 + slack.margin) if candidate else ms, candidate)
    for name, ms in time_budgets(policy).items():
        limits[budget(name)] = (ms, not candidate)
    requests = sum(period.requests for period in periods)
    found: dict[str, Counts] = {}
    for metric, (limit_ms, at_most) in limits.items():
        bad = sum(
            min(period.failed, period.requests)
            if metric == ERRORS
            else period.slower(limit_ms, at_most=at_most)
            for period in periods
        )
        found[metric] = _zero_one(requests - bad, bad)
    return found


def _zero_one(fine: int, bad: int) -> Counts:
    counts: NDArray[np.int64] = np.zeros(LEVELS.size, dtype=np.int64)
    counts[0], counts[-1] = fine, bad
    return tuple(int(count) for count in counts)
