"""What is bad about a request: from an observation frame to values in [0, 1], metric by metric.

A request that a family's column does not know (a measure that is NaN, a label that has not come) is
censored for that family: it is no unit of its tests. That keeps the tests valid as long as whether a
value is known does not depend on the version; `evals.evidence` checks that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs.policy import Canary
from evals.looks import (
    ERRORS,
    QUALITY,
    SERVICE,
    LatencyThresholds,
    budget,
    budget_limits,
    gauge_of,
    margin,
    slacks_of,
    tolerance,
)
from evals.sequential import FloatArray

if TYPE_CHECKING:
    import pandas as pd

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]
BadArray = NDArray[np.int16]

QUALITY_SCALE = 1000
"""Scores are read to a thousandth."""


@dataclass(frozen=True, slots=True)
class Exceedance:
    """The metric 'value over a limit', with the candidate's value divided by 1 + `slack`.

    `quantile` names the threshold (which may depend on the stratum), or `limit` says it.
    """

    metric: str
    slack: float = 0.0
    quantile: str = ""
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """Metrics that are known for the same requests; `scale` is the value that means wholly bad."""

    gauge: str
    relative: tuple[Exceedance, ...] = ()
    absolute: tuple[Exceedance, ...] = ()
    scale: int = 1

    @property
    def metrics(self) -> tuple[str, ...]:
        """In the order of the rows of `badness`."""
        if self.gauge == QUALITY:
            return (QUALITY,)
        first = (ERRORS,) if self.gauge == SERVICE else ()
        return (*first, *(one.metric for one in (*self.relative, *self.absolute)))


def families(policy: Canary, thresholds: LatencyThresholds) -> tuple[Family, ...]:
    """Errors with the times, which every request has, then each measure of the policy."""
    found: list[Family] = []
    for gauge in (SERVICE, *policy.measures):
        about = slacks_of(policy, gauge)
        names = [name for name in thresholds.names if gauge_of(name) == gauge]
        limits = {name: limit for name, limit in budget_limits(policy).items() if gauge_of(name) == gauge}
        relative = (
            *(Exceedance(tolerance(name), about.tolerance, name) for name in names),
            *(Exceedance(margin(name), about.margin, name) for name in names),
        )
        absolute = tuple(Exceedance(budget(name), limit=limit) for name, limit in limits.items())
        found.append(Family(gauge, relative, absolute))
    return tuple(found)


LABELLED = Family(QUALITY, scale=QUALITY_SCALE)


def badness(
    family: Family, thresholds: LatencyThresholds, frame: pd.DataFrame, candidate: BoolArray
) -> tuple[BadArray, BoolArray]:
    """Values of shape (metrics, n) in 0..scale, and for which requests they are known, shape (n,).

    A time that nobody measured is the client's wait, else endless; other columns are unknown where
    they are NaN or negative, and for all requests where the frame lacks them. Requests whose column
    `is_warm` is false are over no threshold of either version: their times say nothing. That favours
    neither null, for zero is not above zero; budgets and errors count them like any other.
    """
    size = len(frame)
    total = _column(frame, "total_ms")
    if family.gauge == SERVICE:
        total = np.where(np.isfinite(total) & (total >= 0), total, np.inf)
        values = _column(frame, "service_ms")
        values = np.where(np.isfinite(values) & (values >= 0), values, total)
        known = np.ones(size, np.bool_)
    else:
        values = _column(frame, family.gauge)
        total = values
        known = np.isfinite(values) & (values >= 0)
    bad = np.zeros((len(family.metrics), size), np.int16)
    row = 0
    if family.gauge == SERVICE:
        bad[0] = frame["failed"].to_numpy(np.bool_)
        row = 1
    strata, codes = _strata(frame, thresholds)
    cold = ~frame["is_warm"].to_numpy(np.bool_) if "is_warm" in frame.columns else None
    adjusted: dict[float, FloatArray] = {}
    for one in family.relative:
        if one.slack not in adjusted:
            adjusted[one.slack] = np.where(candidate, values / (1 + one.slack), values)
        limits = np.array([thresholds.limit(one.quantile, stratum) for stratum in strata])
        np.greater(adjusted[one.slack], limits[0] if limits.size == 1 else limits[codes], out=bad[row])
        if cold is not None:
            bad[row, cold] = 0
        row += 1
    for one in family.absolute:
        np.greater(total, one.limit, out=bad[row])
        row += 1
    return bad, known


def _column(frame: pd.DataFrame, name: str) -> FloatArray:
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    return frame[name].to_numpy(np.float64)


def _strata(frame: pd.DataFrame, thresholds: LatencyThresholds) -> tuple[list[str], IntArray]:
    """The strata with thresholds of their own, "" for the others, and each request's place among them."""
    if not thresholds.strata or "stratum" not in frame.columns:
        return [""], np.zeros(0, np.int64)
    names = ["", *thresholds.strata]
    place = {name: index for index, name in enumerate(names)}
    codes = [place.get(stratum, 0) for stratum in frame["stratum"]]
    return names, np.array(codes, np.int64)
