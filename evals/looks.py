"""What one look at live traffic leaves behind: counts, and nothing that names anybody.

`LookStatistics` are the sufficient statistics of the canary's tests. They outlive captures and
deletions, and every decision of a release can be recomputed from them (`evals.canary.replay`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from configs.measures import Measure
from configs.policy import Canary, Latency
from evals.sequential import LEVELS

if TYPE_CHECKING:
    import pandas as pd

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
SERVICE = ""
"""The gauge of unnamed quantiles: time in the replica, or end to end for budgets."""
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


def gauge_of(name: str) -> str:
    """What a quantile name is about: 'ttft_ms' of 'ttft_ms/p95', SERVICE of 'p95'."""
    return name.rpartition("/")[0]


def tail_of(name: str) -> float:
    """The share of values over this quantile: 0.05 of 'p95' and of 'ttft_ms/p95'."""
    return 1 - QUANTILES[name.rpartition("/")[2]]


@dataclass(frozen=True, slots=True)
class LatencyThresholds:
    """Values whose exceedance is counted, by quantile name; fixed before the canary.

    `ms` are service times, `measures` the policy's named measures in their own units ('ttft_ms/p95').
    `strata` has thresholds for kinds of requests (by the column `stratum`, then by quantile name), so
    that like is compared with like; what is absent there is taken from the others.
    They come from past champion data only: thresholds that knew the canary's data would break
    the tests. Which numbers they are moves power, not validity, so ties and drift are harmless.
    """

    ms: Mapping[str, float]
    measures: Mapping[str, float] = field(default_factory=dict)
    strata: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Every quantile that has a threshold."""
        return (*self.ms, *self.measures)

    def limit(self, name: str, stratum: str = "") -> float:
        """The threshold of a quantile for the requests of a stratum."""
        found = self.strata.get(stratum, {}).get(name)
        if found is not None:
            return found
        return self.ms[name] if name in self.ms else self.measures[name]

    @classmethod
    def from_past(cls, service_ms: ArrayLike) -> LatencyThresholds:
        """Quantiles of past champion service times; those with too few values behind them are left out."""
        return cls(_quantiles(service_ms))

    @classmethod
    def from_requests(cls, policy: Canary, past: pd.DataFrame) -> LatencyThresholds:
        """Thresholds from past champion requests, with the policy's measures, by stratum where there are any.

        `past` has `service_ms` and any of the measures' columns and `stratum`. A stratum has a quantile
        of its own where enough of its values are known, so rare kinds of requests are judged by the whole.
        """
        whole = _of_frame(policy, past)
        ms = {name: value for name, value in whole.items() if not gauge_of(name)}
        measures = {name: value for name, value in whole.items() if gauge_of(name)}
        if "stratum" not in past.columns:
            return cls(ms, measures)
        strata = {str(key): _of_frame(policy, part) for key, part in past.groupby("stratum") if key != ""}
        return cls(ms, measures, {key: found for key, found in strata.items() if found})

    def missing(self, required: Sequence[str]) -> tuple[str, ...]:
        """Required quantiles that have no threshold: without them the canary can never pass."""
        return tuple(name for name in required if name not in self.names)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: `{p95: ms, ttft_ms/p95: ms}`, and `strata` where there are any."""
        plain: dict[str, Any] = {**self.ms, **self.measures}
        return (
            {**plain, "strata": {key: dict(of) for key, of in self.strata.items()}} if self.strata else plain
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyThresholds:
        """The inverse of `as_dict`."""
        plain = {name: float(value) for name, value in data.items() if name != "strata"}
        return cls(
            {name: value for name, value in plain.items() if not gauge_of(name)},
            {name: value for name, value in plain.items() if gauge_of(name)},
            {key: dict(of) for key, of in data.get("strata", {}).items()},
        )


def _quantiles(values: ArrayLike, gauge: str = SERVICE) -> dict[str, float]:
    """A quantile q needs 1/(1 - q) finite values (100 for p99), and at least 10."""
    past = np.asarray(values, dtype=np.float64)
    past = past[np.isfinite(past) & (past >= 0)]
    return {
        f"{gauge}/{name}" if gauge else name: float(np.quantile(past, q))
        for name, q in QUANTILES.items()
        if past.size >= max(10.0, 1 / (1 - q) - 1e-6)
    }


def _of_frame(policy: Canary, past: pd.DataFrame) -> dict[str, float]:
    found = _quantiles(past["service_ms"].to_numpy(np.float64))
    for name in policy.measures:
        if name in past.columns:
            found |= _quantiles(past[name].to_numpy(np.float64), name)
    return found


def slacks_of(policy: Canary, gauge: str) -> Latency | Measure:
    """The policy's part with the tolerance and the margin of a gauge."""
    return next((about for name, about in policy.measures.items() if name == gauge), policy.latency)


def required_quantiles(policy: Canary) -> tuple[str, ...]:
    """Quantiles whose non-inferiority promotion requires: of service time, then of each measure."""
    of_measures = [
        f"{name}/{quantile}" for name, measure in policy.measures.items() for quantile in measure.quantiles
    ]
    return (*policy.latency.quantiles, *of_measures)


def budget_limits(policy: Canary) -> dict[str, float]:
    """The absolute budgets by quantile name: end to end in ms, then those of each measure."""
    budgets: dict[str, Any] = {"": policy.latency.budget_ms}
    budgets |= {f"{name}/": measure.budget for name, measure in policy.measures.items()}
    limits = {
        f"{prefix}{name}": getattr(of, name)
        for prefix, of in budgets.items()
        for name in ("p50", "p95", "p99")
    }
    return {name: float(limit) for name, limit in limits.items() if limit is not None}


def time_budgets(policy: Canary) -> dict[str, float]:
    """The end-to-end budgets alone, ms by quantile name."""
    return {name: limit for name, limit in budget_limits(policy).items() if gauge_of(name) == SERVICE}


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

    @property
    def is_empty(self) -> bool:
        """Whether nothing came: such a look tells no test anything."""
        return not self.groups and not self.requests_candidate and not self.requests_champion

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LookStatistics:
        """The inverse of `as_dict`."""
        groups = tuple(UnitGroup.from_dict(group) for group in data["groups"])
        return cls(groups, *(int(n) for n in data["requests"]), *(int(n) for n in data["late"]))


@dataclass(frozen=True, slots=True)
class StoredLook:
    """All that a decision was made from: enough to make it again.

    `requests_at_step` counts both versions' requests since the step's share was granted.
    """

    statistics: LookStatistics
    step: int
    seconds_at_step: float
    stuck_candidate: int = 0
    stuck_champion: int = 0
    requests_at_step: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.statistics.as_dict(),
            "step": self.step,
            "seconds_at_step": self.seconds_at_step,
            "stuck": [self.stuck_candidate, self.stuck_champion],
            "requests_at_step": self.requests_at_step,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StoredLook:
        """The inverse of `as_dict`."""
        stuck = data["stuck"]
        statistics = LookStatistics.from_dict(data)
        return cls(
            statistics,
            int(data["step"]),
            float(data["seconds_at_step"]),
            int(stuck[0]),
            int(stuck[1]),
            int(data.get("requests_at_step", 0)),
        )


def _sparse(counts: Counts) -> dict[str, int]:
    return {str(level): count for level, count in enumerate(counts) if count}


def _dense(levels: Mapping[str, int]) -> Counts:
    return tuple(int(levels.get(str(level), 0)) for level in range(LEVELS.size))
