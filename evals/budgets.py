"""What one call may take and cost: latency quantiles, and dollars from the operator's prices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.evaluation import Cost, Evaluation
from evals.verdict import Finding, Outcome

CALLS_PER_QUANTILE = {"p50": 20, "p95": 100, "p99": 400}
"""Calls that are timed for a budget of the quantile."""

_CALLS_MIN = {"p50": 10, "p95": 20, "p99": 100}


def calls_wanted(policy: Evaluation) -> int:
    """How many single calls the policy's budgets need timed; 0 where nothing depends on it."""
    asked = [calls for name, calls in CALLS_PER_QUANTILE.items() if getattr(policy.latency_ms, name)]
    if policy.cost is not None and policy.cost.is_measured:
        asked.append(CALLS_PER_QUANTILE["p50"])
    return max(asked, default=0)


def champion_is_timed(policy: Evaluation) -> bool:
    """Whether the champion's calls matter for a decision: its cost is compared and measured."""
    cost = policy.cost
    return cost is not None and cost.margin is not None and cost.is_measured


def judge_latency(policy: Evaluation, candidate_ms: ArrayLike, champion_ms: ArrayLike) -> Iterator[Finding]:
    """One finding per budget: PASS within it, FAIL where the excess is proven.

    Proven: more calls are over the budget than the quantile allows, by an exact (Clopper-Pearson)
    bound at the policy's confidence. Over the budget but not proven is INCONCLUSIVE.
    """
    ours, theirs = (np.asarray(given, np.float64) for given in (candidate_ms, champion_ms))
    for name, calls in _CALLS_MIN.items():
        limit: float | None = getattr(policy.latency_ms, name)
        if limit is None:
            continue
        metric = f"latency {name}"
        if ours.size == 0:
            yield Finding(metric, Outcome.ERROR, f"{metric} has a budget, but no call was timed")
            continue
        if ours.size < calls:
            reason = f"{metric}: {ours.size} calls were timed, {calls} are needed"
            yield Finding(metric, Outcome.INCONCLUSIVE, reason, units=int(ours.size))
            continue
        yield _latency(metric, int(name[1:]) / 100, limit, policy.confidence, ours, theirs)


def cost_of_call(cost: Cost, calls_ms: NDArray[np.float64]) -> float | None:
    """Dollars a call; None where it would have to be measured and no call was timed."""
    if cost.per_call_usd is not None:
        return cost.per_call_usd
    assert cost.per_hour_usd is not None  # the policy's own check
    if cost.calls_per_s is not None:
        return cost.per_hour_usd / 3600 / cost.calls_per_s
    return None if calls_ms.size == 0 else cost.per_hour_usd / 3600 * float(calls_ms.mean()) / 1000


def judge_cost(policy: Evaluation, candidate_ms: ArrayLike, champion_ms: ArrayLike) -> Iterator[Finding]:
    """The candidate's cost per call against the policy's limit and the champion's cost."""
    cost = policy.cost
    if cost is None:
        return
    ours, theirs = (np.asarray(given, np.float64) for given in (candidate_ms, champion_ms))
    mine, other = cost_of_call(cost, ours), cost_of_call(cost, theirs)
    units = int(ours.size) or None
    if mine is None:
        reason = "the cost per call follows from the time that a call takes, but no call was timed"
        yield Finding("cost per call", Outcome.ERROR, reason)
        return
    if cost.max_usd is not None:
        outcome = Outcome.FAIL if mine > cost.max_usd else Outcome.PASS
        reason = f"a call costs ${mine:.3g}, the policy allows ${cost.max_usd:g}"
        yield Finding("cost per call", outcome, reason, candidate=mine, champion=other, units=units)
    if cost.margin is not None and other is not None:
        allowed = other * (1 + cost.margin)
        outcome = Outcome.FAIL if mine > allowed else Outcome.PASS
        reason = (
            f"a call costs ${mine:.3g}, the champion's ${other:.3g}, the policy allows {cost.margin:.0%} more"
        )
        yield Finding("cost against champion", outcome, reason, candidate=mine, champion=other, units=units)


def _latency(
    metric: str,
    quantile: float,
    limit: float,
    confidence: float,
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
) -> Finding:
    from scipy.stats import beta

    value = float(np.quantile(ours, quantile))
    over = int(np.sum(ours > limit))
    least_share = float(beta.ppf(1 - confidence, over, ours.size - over + 1)) if over else 0.0
    reason = f"{metric} is {value:.3g} ms a call, the budget is {limit:g} ms"
    if value <= limit:
        outcome = Outcome.PASS
    elif least_share > 1 - quantile:
        outcome = Outcome.FAIL
    else:
        outcome = Outcome.INCONCLUSIVE
        reason += f", but {over} of {ours.size} calls over it prove nothing yet. "
        reason += "Next: run it again on a quiet machine"
    return Finding(
        metric,
        outcome,
        reason,
        candidate=value,
        champion=float(np.quantile(theirs, quantile)) if theirs.size else None,
        units=int(ours.size),
    )
