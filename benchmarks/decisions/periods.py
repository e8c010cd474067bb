"""Releases on platforms that only count: `evals.periods` makes the counts, the judge's e-processes bet.

A release has a ramp of 5, 25, 50 and 95%, whole periods of 300 requests, error rates and times
that drift for both versions alike, and either the edges that the policy wants or a coarse grid.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from benchmarks.decisions.engines import POLICY
from benchmarks.decisions.rows import Row
from evals.evidence import RESTAKE_AT_STEP, RESTAKE_PER_UNIT, errors_worse, latency_worse
from evals.looks import ERRORS, QUANTILES, LatencyThresholds, UnitGroup, tolerance
from evals.periods import ArmPeriod, past_thresholds, period_statistics, wanted_edges
from evals.sequential import LEVELS, FloatArray, combine

METHOD = "e-process (ours), errors and latency, from whole periods"
SHARES = (0.05, 0.25, 0.5, 0.95)
PERIODS_PER_STEP, REQUESTS = 6, 300
PAST_EDGES_MS = tuple(float(edge) for edge in np.round(np.geomspace(1, 1000, 60), 3))
COARSE_EDGES_MS = (25.0, 50.0, 100.0, 200.0, 400.0)
CHUNK = 1_000


def race_periods(*, streams: int, rng: np.random.Generator) -> list[Row]:
    """Half of the releases with the edges that the policy wants, half with coarse ones."""
    wanted, coarse = (
        np.concatenate(
            [_release(min(CHUNK, half - start), rng, is_coarse=is_coarse) for start in range(0, half, CHUNK)]
        )
        for is_coarse, half in ((False, streams - streams // 2), (True, streams // 2))
    )
    scenario = "whole periods, ramp 5-25-50-95%, drift"
    return [
        Row(scenario, METHOD, np.concatenate([wanted, coarse])),
        Row(scenario, "of these with the edges that the policy wants", wanted),
        Row(scenario, "of these with five coarse edges", coarse),
    ]


def _release(streams: int, rng: np.random.Generator, *, is_coarse: bool) -> FloatArray:
    """Candidate requests until rollback of each stream, inf where never."""
    names = tuple(QUANTILES)
    thresholds = [_past(rng) for _ in range(streams)]
    edges = [COARSE_EDGES_MS if is_coarse else wanted_edges(POLICY, known) for known in thresholds]
    errors, latency = errors_worse(POLICY, shape=(streams,)), latency_worse(names, shape=(streams,))
    first, played = np.full(streams, np.inf), np.zeros(streams)
    metrics = (ERRORS, *(tolerance(name) for name in names))
    periods = len(SHARES) * PERIODS_PER_STEP
    for index in range(periods):
        pi = SHARES[index // PERIODS_PER_STEP]
        if index and index % PERIODS_PER_STEP == 0:
            for process in (errors, latency):
                process.wealth.stake(RESTAKE_AT_STEP)
        rate, factor = 0.005 * 4 ** (index / periods), 1 + 0.5 * math.sin(2 * math.pi * index / periods)
        units_b = rng.binomial(REQUESTS, pi, streams)
        groups = [
            _group(thresholds[stream], edges[stream], pi, int(units_b[stream]), rate, factor, rng)
            for stream in range(streams)
        ]
        candidate, champion = (
            np.array([[_counts(group, arm, metric) for metric in metrics] for group in groups], np.float64)
            for arm in ("candidate", "champion")
        )
        errors.update(candidate[:, 0], champion[:, 0], pi)
        latency.update(candidate[:, 1:], champion[:, 1:], pi)
        for process in (errors, latency):
            process.wealth.stake(-math.expm1(-RESTAKE_PER_UNIT * REQUESTS * pi))
        played += units_b
        of_latency = combine(latency.log_e, np.ones(len(names)))
        rejected = combine(np.stack([errors.log_e, of_latency], axis=-1), [1, 1]) >= math.log(100)
        new = rejected & np.isinf(first)
        first[new] = played[new]
    return first


def _past(rng: np.random.Generator) -> LatencyThresholds:
    counts, _ = np.histogram(_times(2_000, 1.0, rng), [-np.inf, *PAST_EDGES_MS, np.inf])
    period = ArmPeriod(0.0, False, 0.0, 2_000, 0, PAST_EDGES_MS, tuple(counts.tolist()))
    return past_thresholds([period])


def _group(
    thresholds: LatencyThresholds,
    edges: tuple[float, ...],
    pi: float,
    units_b: int,
    rate: float,
    factor: float,
    rng: np.random.Generator,
) -> UnitGroup:
    periods: list[ArmPeriod] = []
    for candidate, units in ((True, units_b), (False, REQUESTS - units_b)):
        at = np.searchsorted(edges, _times(units, factor, rng))
        counts = np.bincount(at, minlength=len(edges) + 1)
        failed = int(rng.binomial(units, rate))
        periods.append(ArmPeriod(pi, candidate, 0.0, units, failed, edges, tuple(counts.tolist())))
    return period_statistics(POLICY, thresholds, periods).groups[0]


def _times(count: int, factor: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Milliseconds; lognormal with median 50 and sigma 0.5."""
    return 50 * factor * np.exp(0.5 * rng.standard_normal(count))


def _counts(group: UnitGroup, arm: str, metric: str) -> tuple[int, ...]:
    return getattr(group, arm).get(metric, (0,) * LEVELS.size)
