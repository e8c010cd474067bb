"""Our engine over many streams at once, from the same e-processes as the judge."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.decisions.streams import Counts, FloatArray, LatencyCdf, slower
from configs.policy import Canary, Latency
from evals.evidence import RESTAKE_PER_UNIT, errors_fine, errors_worse, latency_fine, latency_worse
from evals.looks import QUANTILES
from evals.sequential import BINARY, combine

POLICY = Canary(latency=Latency(tolerance=0.0, margin=0.2, quantiles=("p50", "p95", "p99")))
"""The margins of evidence.md: +1 point of errors, +20% on p50, p95 and p99."""
_LOG_ROLLBACK = math.log(1 / POLICY.false_rollback)
_LOG_PROMOTE = math.log(1 / POLICY.false_promote)


def pair(units: NDArray[np.int64], bad: NDArray[np.int64]) -> FloatArray:
    """Counts of 0/1 units, shape (..., 2)."""
    return np.stack([units - bad, bad], axis=-1).astype(np.float64)


class ErrorProcess:
    """The error e-process alone, rejecting at 1/alpha."""

    name = "e-process (ours), errors alone"

    def __init__(self, streams: int) -> None:
        self._process = errors_worse(POLICY, shape=(streams,))
        self._process.levels = BINARY

    @property
    def log_e(self) -> FloatArray:
        """Log e-value of each stream."""
        return self._process.log_e

    def look(self, counts: Counts) -> NDArray[np.bool_]:
        """Whether each stream is rolled back now."""
        process = self._process
        process.update(
            pair(counts.units_b, counts.errors_b), pair(counts.units_a, counts.errors_a), counts.pi
        )
        process.wealth.stake(-math.expm1(-RESTAKE_PER_UNIT * float(counts.units_b.mean())))
        return process.log_e >= _LOG_ROLLBACK


class LatencyProcess:
    """The latency family alone, on times of a Pareto law; thresholds are quantiles of 500 past times."""

    name = "e-process (ours), latency alone"
    shape = 1.1

    def __init__(self, streams: int, rng: np.random.Generator) -> None:
        past = rng.pareto(self.shape, (streams, 500))
        names = [name for name, q in QUANTILES.items() if 1 / (1 - q) - 1e-6 <= 500]
        thresholds = np.quantile(past, [QUANTILES[name] for name in names], axis=1).T
        tails = (1 + thresholds) ** -self.shape
        edges = np.concatenate([np.ones((streams, 1)), tails, np.zeros((streams, 1))], axis=1)
        self._cells = np.maximum(-np.diff(edges, axis=1), 0)
        self._process = latency_worse(names, shape=(streams,))
        self._process.levels = BINARY

    def look(self, counts: Counts, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Whether each stream is rolled back now."""
        over_b, over_a = (
            rng.multinomial(units, self._cells)[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
            for units in (counts.units_b, counts.units_a)
        )
        self._process.update(
            pair(counts.units_b[:, None], over_b), pair(counts.units_a[:, None], over_a), counts.pi
        )
        self._process.wealth.stake(-math.expm1(-RESTAKE_PER_UNIT * float(counts.units_b.mean())))
        log_es = self._process.log_e
        return combine(log_es, np.ones(log_es.shape[-1])) >= _LOG_ROLLBACK


@dataclass
class Controller:
    """The whole judge at one share: errors and latency, rollback and promotion."""

    streams: int
    candidate: LatencyCdf = field(default_factory=lambda: slower(1.0))
    pi: float = 0.05

    def __post_init__(self) -> None:
        shape = (self.streams,)
        names = tuple(QUANTILES)
        self._required = [names.index(name) for name in POLICY.latency.quantiles]
        champion = slower(1.0)
        from scipy.stats import norm

        self._thresholds = np.exp(0.5 * norm.ppf(list(QUANTILES.values())))
        self._tails_a = champion(self._thresholds)
        self._margin = 1 + POLICY.latency.margin
        self._processes = (errors_worse(POLICY, shape=shape), errors_fine(POLICY, shape=shape))
        self._latency = (latency_worse(names, shape=shape), latency_fine(names, shape=shape))
        for process in (*self._processes, *self._latency):
            process.levels = BINARY

    def look(self, counts: Counts, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each stream is rolled back, and whether it may be promoted, now."""
        plain = self._thresholds
        slack = plain * self._margin
        over = _exceeding(counts.units_b, np.concatenate([plain, slack]), self.candidate, rng)
        over_a = _exceeding(counts.units_a, plain, slower(1.0), rng)
        worse, fine = self._processes
        errors = pair(counts.units_b, counts.errors_b), pair(counts.units_a, counts.errors_a)
        latency_a = pair(counts.units_a[:, None], over_a)
        pi = np.full(self.streams, counts.pi)
        worse.update(*errors, pi)
        fine.update(*errors, pi)
        split = plain.size
        self._latency[0].update(pair(counts.units_b[:, None], over[:, :split]), latency_a, pi[:, None])
        self._latency[1].update(pair(counts.units_b[:, None], over[:, split:]), latency_a, pi[:, None])
        fraction = -math.expm1(-RESTAKE_PER_UNIT * float(counts.units_b.mean()))
        for process in (worse, self._latency[0]):
            process.wealth.stake(fraction)
        of_latency = combine(self._latency[0].log_e, np.ones(split))
        rejected = combine(np.stack([worse.log_e, of_latency], axis=-1), [1, 1]) >= _LOG_ROLLBACK
        shown = np.minimum(fine.log_e, self._latency[1].log_e[:, self._required].min(axis=1)) >= _LOG_PROMOTE
        return rejected, shown & ~rejected


def _exceeding(
    units: NDArray[np.int64], thresholds: FloatArray, tail: LatencyCdf, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many of the units of each stream exceed each threshold, jointly; shape (S, thresholds)."""
    order = np.argsort(thresholds)
    tails = tail(thresholds[order])
    cells = -np.diff(np.concatenate([[1.0], tails, [0.0]]))
    drawn = rng.multinomial(units, np.maximum(cells, 0))
    exceeding = np.empty((units.size, thresholds.size), np.int64)
    exceeding[:, order] = np.cumsum(drawn[:, ::-1], axis=1)[:, ::-1][:, 1:]
    return exceeding
