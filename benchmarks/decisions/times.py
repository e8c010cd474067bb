"""Races on answer times: every method sees the same requests, one time each.

Times are the champion's law times a factor that both versions share; the candidate's harm is a
function of the time. Errors are alike (1%), so a rule that watches both is judged on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.decisions.engines import pair
from benchmarks.decisions.peers import WINDOW, GroupSequential, Kayenta, MixtureSprt, PeekedZ
from benchmarks.decisions.rows import Row
from benchmarks.decisions.streams import Counts
from evals.evidence import RESTAKE_PER_UNIT, latency_worse
from evals.looks import QUANTILES
from evals.sequential import BINARY, combine

Times = NDArray[np.float32]
PI = 0.05
PER_LOOK = 50
PAST = 2_000
"""Champion requests before the canary, from which the thresholds come."""


@dataclass(frozen=True, slots=True)
class TimesScenario:
    """How times are drawn, how both versions drift, and what the candidate does to a time."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, int]], Times]
    harm: Callable[[Times], Times] = lambda times: times
    drift: Callable[[float], float] = lambda progress: 1.0


def lognormal(rng: np.random.Generator, shape: tuple[int, int]) -> Times:
    """Median 1, sigma 0.5."""
    return np.exp(np.float32(0.5) * rng.standard_normal(shape, dtype=np.float32))


def pareto(rng: np.random.Generator, shape: tuple[int, int]) -> Times:
    """Tail exponent 1.1: the variance is infinite, and the mean all but."""
    return np.exp(rng.standard_exponential(shape, dtype=np.float32) / np.float32(1.1))


_P97 = np.float32(math.exp(0.5 * float(norm.ppf(0.97))))


def _scaled(factor: float) -> Callable[[Times], Times]:
    return lambda times: times * np.float32(factor)


SCENARIOS = (
    TimesScenario("times alike", lognormal),
    TimesScenario("times drift x1 to x2 to x1", lognormal, drift=lambda p: 1 + math.sin(math.pi * p)),
    TimesScenario("heavy tails (Pareto 1.1)", pareto),
    TimesScenario("all 1.2 times slower", lognormal, _scaled(1.2)),
    TimesScenario("all 1.5 times slower", lognormal, _scaled(1.5)),
    TimesScenario(
        "tail above p97 doubled", lognormal, lambda times: np.where(times > _P97, 2 * times, times)
    ),
)
NULLS = 3
"""The first so many scenarios have no harm; the first `LOGNORMAL_NULLS` of them are lognormal."""
LOGNORMAL_NULLS = 2
CHUNK = 5_000
METHODS = (
    "e-process (ours), latency alone",
    "'error rate over 5% or mean latency over 2x' in a window",
    "Flagger-style: p99 under 1.5x the past, threshold 10",
    "Argo-style: p99 under 1.5x the champion's, failure limit 3",
    "Kayenta-style: Mann-Whitney of the windows' means (re-implemented)",
    "z-test at 1% on requests over the past p95, every look",
    "group sequential (O'Brien-Fleming) on the same",
    "mSPRT on the same",
)


class _Windows:
    """The rules that judge windows of `WINDOW` expected candidate requests by their times."""

    def __init__(self, streams: int, past_p99: NDArray[np.float64]) -> None:
        self._past_p99 = past_p99
        self._failed = np.zeros((2, streams))
        self._kayenta = Kayenta(streams, 1)

    def judge(self, ours: Times, theirs: Times, errors: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """In the order of `METHODS[1:5]`; times of shape (streams, requests), NaN where there is none."""
        mean, mean_a = _means(ours), _means(theirs)
        p99, p99_a = _tails(ours), _tails(theirs)
        requests = np.maximum(np.isfinite(ours).sum(axis=1), 1)
        self._failed[0] += p99 > 1.5 * self._past_p99
        self._failed[1] += p99 > 1.5 * p99_a
        return [
            (errors / requests > 0.05) | (mean > 2 * mean_a),
            self._failed[0] >= 10,
            self._failed[1] > 3,
            self._kayenta.window(mean, mean_a),
        ]


def race_ours(index: int, *, streams: int, rng: np.random.Generator, units: int) -> list[Row]:
    """Our latency family alone on a lognormal null, from counts: many streams in little time."""
    scenario = SCENARIOS[index]
    looks, size, quantiles = units // PER_LOOK, round(PER_LOOK / PI), list(QUANTILES.values())
    parts: list[NDArray[np.float64]] = []
    for start in range(0, streams, CHUNK):
        some = min(CHUNK, streams - start)
        limits = np.concatenate(
            [
                np.quantile(scenario.draw(rng, (min(500, some - at), PAST)), quantiles, axis=1).T
                for at in range(0, some, 500)
            ]
        )
        process = latency_worse(tuple(QUANTILES), shape=(some,))
        process.levels = BINARY
        first = np.full(some, np.inf)
        for look in range(looks):
            tails = norm.sf(np.log(limits / scenario.drift(look / looks)) / 0.5)
            edges = np.concatenate([np.ones((some, 1)), tails, np.zeros((some, 1))], axis=1)
            cells = np.maximum(-np.diff(edges, axis=1), 0)
            units_b = rng.binomial(size, PI, some)
            over_b, over_a = (
                rng.multinomial(units, cells)[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
                for units in (units_b, size - units_b)
            )
            process.update(pair(units_b[:, None], over_b), pair((size - units_b)[:, None], over_a), PI)
            process.wealth.stake(-math.expm1(-RESTAKE_PER_UNIT * PER_LOOK))
            rejected = combine(process.log_e, np.ones(len(QUANTILES))) >= math.log(100)
            first[rejected & np.isinf(first)] = (look + 1) * PER_LOOK
        parts.append(first)
    return [Row(scenario.name, METHODS[0], np.concatenate(parts))]


def race_times(index: int, *, streams: int, rng: np.random.Generator, units: int) -> list[Row]:
    """All methods on the same requests, `units` expected candidate requests a stream."""
    scenario = SCENARIOS[index]
    looks, size = units // PER_LOOK, round(PER_LOOK / PI)
    past = scenario.draw(rng, (streams, PAST))
    limits = np.quantile(past, list(QUANTILES.values()), axis=1).T.astype(np.float64)
    names = tuple(QUANTILES)
    process = latency_worse(names, shape=(streams,))
    process.levels = BINARY
    windows = _Windows(streams, limits[:, names.index("p99")])
    counting = [PeekedZ(streams), GroupSequential(streams, looks), MixtureSprt(streams)]
    first = np.full((len(METHODS), streams), np.inf)
    held: list[tuple[Times, Times]] = []
    errors = np.zeros(streams, np.int64)
    for look in range(looks):
        units_b = rng.binomial(size, PI, streams)
        times = scenario.draw(rng, (streams, size)) * np.float32(scenario.drift(look / looks))
        is_candidate = np.arange(size) < units_b[:, None]
        times = np.where(is_candidate, scenario.harm(times), times)
        widest = int(units_b.max())
        over_b, over_a = _exceeding(times, is_candidate, limits, widest)
        process.update(pair(units_b[:, None], over_b), pair((size - units_b)[:, None], over_a), PI)
        process.wealth.stake(-math.expm1(-RESTAKE_PER_UNIT * PER_LOOK))
        found = [combine(process.log_e, np.ones(len(names))) >= math.log(100)]
        held.append(
            (np.where(is_candidate, times, np.nan)[:, :widest], np.where(is_candidate, np.nan, times))
        )
        errors += rng.binomial(units_b, 0.01)
        if (look + 1) % (WINDOW // PER_LOOK):
            found += [np.zeros(streams, np.bool_)] * 4
        else:
            ours, theirs = (np.concatenate([part[arm] for part in held], axis=1) for arm in (0, 1))
            found += windows.judge(ours, theirs, errors)
            held, errors = [], np.zeros(streams, np.int64)
        p95 = names.index("p95")
        counts = Counts(PI, units_b, over_b[:, p95], size - units_b, over_a[:, p95])
        found += [rule.look(counts) for rule in counting]
        for rejected, mine in zip(found, first, strict=True):
            mine[rejected & np.isinf(mine)] = (look + 1) * PER_LOOK
    return [Row(scenario.name, name, mine) for name, mine in zip(METHODS, first, strict=True)]


def _exceeding(
    times: Times, is_candidate: NDArray[np.bool_], limits: NDArray[np.float64], widest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Requests of either arm over each stream's limits; shapes (streams, limits)."""
    over_b = np.zeros(limits.shape, np.int64)
    over_a = np.zeros(limits.shape, np.int64)
    for index in range(limits.shape[1]):
        over = times > limits[:, index, None].astype(np.float32)
        over_b[:, index] = np.count_nonzero(over[:, :widest] & is_candidate[:, :widest], axis=1)
        over_a[:, index] = np.count_nonzero(over, axis=1) - over_b[:, index]
    return over_b, over_a


def _means(times: Times) -> NDArray[np.float64]:
    there = np.isfinite(times)
    return np.where(there, times, 0).sum(axis=1, dtype=np.float64) / np.maximum(there.sum(axis=1), 1)


def _tails(times: Times) -> NDArray[np.float64]:
    """The 99th percentile of each stream: the smallest time with at most 1% above it; 0 without times."""
    there = np.isfinite(times)
    requests = there.sum(axis=1)
    above = np.minimum(requests // 100, np.maximum(requests - 1, 0))
    most = int(above.max()) + 1
    largest = -np.sort(np.partition(-np.where(there, times, 0), most - 1, axis=1)[:, :most], axis=1)
    return largest[np.arange(times.shape[0]), above].astype(np.float64)
