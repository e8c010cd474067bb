"""What one look at live traffic leaves behind: counts, and nothing that names anybody.

`LookStatistics` are the sufficient statistics of the canary's tests. They outlive captures and
deletions, and every decision of a release can be recomputed from them (`evals.canary.replay`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from configs.policy import Canary
from evals.sequential import LEVELS

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
ERRORS = "errors"
QUALITY = "quality"
"""Badness 1 - score of labelled units, where the caller has labels."""


def tolerance(quantile: str) -> str:
    """Name of the metric 'slower than the champion's quantile', candidate divided by 1 + tolerance."""
    return f"tolerance/{quantile}"


def margin(quantile: str) -> str:
    """The same with the candidate's latency divided by 1 + margin: what promotion must exclude."""
    return f"margin/{quantile}"


def budget(quantile: str) -> str:
    """Name of the metric 'the client waited longer than the absolute budget'."""
    return f"budget/{quantile}"


@dataclass(frozen=True, slots=True)
class LatencyThresholds:
    """Service times (ms) whose exceedance is counted, by quantile name; fixed before the canary.

    They come from past champion data only: thresholds that knew the canary's data would break
    the tests. Which numbers they are moves power, not validity, so ties and drift are harmless.
    """

    ms: Mapping[str, float]

    @classmethod
    def from_past(cls, service_ms: ArrayLike) -> LatencyThresholds:
        """Quantiles of past champion service times; those with too few values behind them are left out.

        A quantile q needs 1/(1 - q) finite values (100 for p99), and at least 10.
        """
        past = np.asarray(service_ms, dtype=np.float64)
        past = past[np.isfinite(past) & (past >= 0)]
        known = {
            name: float(np.quantile(past, q))
            for name, q in QUANTILES.items()
            if past.size >= max(10.0, 1 / (1 - q) - 1e-6)
        }
        return cls(known)

    def missing(self, required: Sequence[str]) -> tuple[str, ...]:
        """Required quantiles that have no threshold: without them the canary can never pass."""
        return tuple(name for name in required if name not in self.ms)

    def as_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return dict(self.ms)


def budget_limits(policy: Canary) -> dict[str, float]:
    """The absolute end-to-end budgets of the policy, ms by quantile name."""
    limits = {name: getattr(policy.latency.budget_ms, name) for name in ("p50", "p95", "p99")}
    return {name: float(limit) for name, limit in limits.items() if limit is not None}


def metric_names(policy: Canary, thresholds: LatencyThresholds) -> tuple[str, ...]:
    """Every metric that a look counts, in the order of the tracker's columns."""
    return (
        ERRORS,
        *(tolerance(name) for name in thresholds.ms),
        *(margin(name) for name in thresholds.ms),
        *(budget(name) for name in budget_limits(policy)),
    )


Counts = tuple[int, ...]
"""How many units had each level of badness (`evals.sequential.LEVELS`)."""


@dataclass(frozen=True, slots=True)
class UnitGroup:
    """Units that were assigned with the same probability `pi`.

    `candidate` and `champion` map a metric to the closed units' counts by level. `entered_*`
    count units when they are first seen (the sample-ratio test), before they are closed.
    """

    pi: float
    entered_candidate: int = 0
    entered_champion: int = 0
    candidate: Mapping[str, Counts] = field(default_factory=dict)
    champion: Mapping[str, Counts] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; empty levels are left out."""
        return {
            "pi": self.pi,
            "entered": [self.entered_candidate, self.entered_champion],
            "candidate": {metric: _sparse(counts) for metric, counts in self.candidate.items()},
            "champion": {metric: _sparse(counts) for metric, counts in self.champion.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UnitGroup:
        """The inverse of `as_dict`."""
        return cls(
            float(data["pi"]),
            int(data["entered"][0]),
            int(data["entered"][1]),
            {metric: _dense(levels) for metric, levels in data["candidate"].items()},
            {metric: _dense(levels) for metric, levels in data["champion"].items()},
        )


@dataclass(frozen=True, slots=True)
class LookStatistics:
    """The counts of one look. Groups of different pi are never added together.

    `requests_*` count requests; `late_*` those that finished after their user's window had been
    counted, which therefore are no evidence.
    """

    groups: tuple[UnitGroup, ...] = ()
    requests_candidate: int = 0
    requests_champion: int = 0
    late_candidate: int = 0
    late_champion: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "groups": [group.as_dict() for group in self.groups],
            "requests": [self.requests_candidate, self.requests_champion],
            "late": [self.late_candidate, self.late_champion],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LookStatistics:
        """The inverse of `as_dict`."""
        groups = tuple(UnitGroup.from_dict(group) for group in data["groups"])
        return cls(groups, *(int(n) for n in data["requests"]), *(int(n) for n in data["late"]))


@dataclass(frozen=True, slots=True)
class StoredLook:
    """All that a decision was made from: enough to make it again."""

    statistics: LookStatistics
    step: int
    seconds_at_step: float
    stuck_candidate: int = 0
    stuck_champion: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.statistics.as_dict(),
            "step": self.step,
            "seconds_at_step": self.seconds_at_step,
            "stuck": [self.stuck_candidate, self.stuck_champion],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StoredLook:
        """The inverse of `as_dict`."""
        stuck = data["stuck"]
        statistics = LookStatistics.from_dict(data)
        return cls(
            statistics, int(data["step"]), float(data["seconds_at_step"]), int(stuck[0]), int(stuck[1])
        )


def _sparse(counts: Counts) -> dict[str, int]:
    return {str(level): count for level, count in enumerate(counts) if count}


def _dense(levels: Mapping[str, int]) -> Counts:
    return tuple(int(levels.get(str(level), 0)) for level in range(LEVELS.size))
