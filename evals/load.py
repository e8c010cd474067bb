"""Whether a version bears its load, which rate it bears at most, and how many requests at once.

A load test is open-loop: every request has a moment at which it is due, and what a user waits
begins there, not when the generator got round to sending it. So a generator that is late makes
the version look worse, never better: where the budgets hold in spite of it they hold; where they
do not, and would hold if every late request were excused, nobody knows (INCONCLUSIVE).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.load_test import LoadTest
from configs.section import LatencyBudget
from evals.verdict import Finding, Outcome, Verdict

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
RATE_KEPT_MIN = 0.95
"""A generator that sent less than this share of what was due did not test the rate."""
LATE_S = 0.02
LATE_SHARE_MAX = 0.01
_ALPHA = 0.01
_FINE_ENOUGH = 1.15
"""The search ends when the rate that failed is within this factor of the one that passed."""
_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What became of one rate's requests; all times in seconds since the rate began, NaN: never.

    `due`, `sent` and `done` have one entry a request, `status` its HTTP status (0: no answer).
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LoadStep:
    """One rate as it was measured. Latencies in ms from the due time; shares and rates per second.

    `over` says for each quantile how many requests took longer than its budget, `in_flight` how many
    requests were under way in the 99% least busy of the time.
    """

    rate: float
    sent_rate: float
    requests: int
    failed: int
    p50: float
    p95: float
    p99: float
    over: dict[str, int]
    late_share: float
    in_flight: float

    @property
    def kept_rate(self) -> bool:
        """Whether the generator sent what was due."""
        return self.requests > 0 and self.sent_rate >= RATE_KEPT_MIN * self.rate

    @property
    def was_on_time(self) -> bool:
        """Whether the generator sent it when it was due."""
        return self.late_share <= LATE_SHARE_MAX

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: a latency without end is None."""
        plain = asdict(self)
        return plain | {name: plain[name] if math.isfinite(plain[name]) else None for name in QUANTILES}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LoadStep:
        """The step that `as_dict` wrote."""
        ends: dict[str, Any] = {name: math.inf for name in QUANTILES if plain[name] is None}
        return cls(**{**plain, **ends})


def measure(arrivals: Arrivals, *, rate: float, policy: LoadTest, budget: LatencyBudget) -> LoadStep:
    """One rate's numbers, without its warm-up. A request without an answer took for ever."""
    counted = arrivals.due >= policy.warm_up_s
    due, sent, done = arrivals.due[counted], arrivals.sent[counted], arrivals.done[counted]
    failed = ~np.isin(arrivals.status[counted], (200,))
    window_s = policy.duration_s - policy.warm_up_s
    went = np.isfinite(sent) & (sent <= policy.duration_s + LATE_S)
    waited = np.where(np.isfinite(done) & ~failed, done - due, np.inf) * 1000
    quantiles = {name: _quantile(waited, q) if len(waited) else math.nan for name, q in QUANTILES.items()}
    budgets: dict[str, float | None] = budget.model_dump()
    late = np.where(np.isfinite(sent), sent - due, np.inf) > LATE_S
    return LoadStep(
        rate=rate,
        sent_rate=float(went.sum() / window_s),
        requests=len(due),
        failed=int(failed.sum()),
        over={name: int((waited > limit).sum()) for name, limit in budgets.items() if limit is not None},
        late_share=float(late.mean()) if len(due) else 1.0,
        in_flight=_busy(sent, done),
        **quantiles,
    )


def judge_step(step: LoadStep, policy: LoadTest, budget: LatencyBudget) -> Verdict:
    """Whether one rate is borne: errors and every budgeted quantile, each with the sample's say.

    A budget on the 95th percentile is a claim about how many requests take longer: more than 5% of
    them, beyond chance, is FAIL; more, but within chance, is INCONCLUSIVE.
    """
    if not step.kept_rate:
        reason = (
            f"the generator sent {step.sent_rate:.4g}/s of {step.rate:.4g}/s: this rate was not tested. "
            "Next: run the load test on a less busy machine"
        )
        return Verdict(Outcome.INCONCLUSIVE, reason)
    findings = _claims(step, policy, budget, excused=0)
    bad = [found for found in findings if found.outcome is not Outcome.PASS]
    outcome = next(
        (one.outcome for one in bad if one.outcome is Outcome.FAIL), bad[0].outcome if bad else Outcome.PASS
    )
    at = f"at {step.rate:.4g}/s "
    if outcome is Outcome.FAIL and not step.was_on_time:
        at += f"(but {step.late_share:.0%} were sent more than {LATE_S * 1000:.0f} ms late by the generator"
        late = round(step.late_share * step.requests)
        if any(one.outcome is Outcome.FAIL for one in _claims(step, policy, budget, excused=late)):
            at += "; it fails without them too) "
        else:
            outcome = Outcome.INCONCLUSIVE
            at += ") "
    chosen = bad or findings
    return Verdict(outcome, at + "; ".join(found.reason for found in chosen), tuple(findings))


def next_rate(steps: Sequence[LoadStep], passed: Sequence[bool], policy: LoadTest) -> float | None:
    """The rate to try next, None when the search is over: up until one is not borne, then between."""
    if not steps:
        return policy.rate_per_s
    if not passed[0] or len(steps) >= policy.steps_max:
        return None
    borne = max(step.rate for step, is_borne in zip(steps, passed, strict=True) if is_borne)
    too_much = min(
        (step.rate for step, is_borne in zip(steps, passed, strict=True) if not is_borne), default=None
    )
    highest = policy.rate_per_s * policy.search_max_rate
    if too_much is None:
        return min(borne * _GROWTH, highest) if borne < highest * 0.999 else None
    return math.sqrt(borne * too_much) if too_much / borne > _FINE_ENOUGH else None


def judge_load(
    steps: Sequence[LoadStep], policy: LoadTest, budget: LatencyBudget, *, replicas: int
) -> Verdict:
    """The whole test: the expected rate decides; the highest rate borne is a finding.

    So is the concurrency that a replica had there, but only where a higher rate was too much: without one
    nobody knows what it bears, only what it was given.
    """
    if not steps:
        return Verdict(Outcome.INCONCLUSIVE, "no rate was tried")
    verdicts = [judge_step(step, policy, budget) for step in steps]
    expected = verdicts[0]
    if not expected.passed:
        return expected
    best = max(
        (step for step, one in zip(steps, verdicts, strict=True) if one.passed), key=lambda step: step.rate
    )
    rate = Finding(RATE, Outcome.PASS, f"borne: {best.rate:.4g}/s", candidate=best.rate, units=best.requests)
    if all(one.outcome is not Outcome.FAIL for one in verdicts):
        reason = f"{expected.reason}; no limit found: {best.rate:.4g}/s is borne, no rate tried was too much"
        return Verdict(Outcome.PASS, reason, (*expected.findings, rate))
    limit = concurrency_limit(best, replicas)
    reason = (
        f"{expected.reason}; the highest rate within budget is {best.rate:.4g}/s, with {limit} requests at "
        f"once a replica"
    )
    at_once = Finding(CONCURRENCY, Outcome.PASS, f"{limit} a replica", candidate=float(limit))
    return Verdict(Outcome.PASS, reason, (*expected.findings, rate, at_once))


RATE, CONCURRENCY = "highest_rate_per_s", "concurrency_per_replica"
"""Findings of a load test that passed; the second only where it found a limit."""


def concurrency_limit(step: LoadStep, replicas: int) -> int:
    """Requests at once that one replica had at the highest rate that it bore within budget."""
    return max(1, math.ceil(step.in_flight / replicas - 1e-9))


def _claims(step: LoadStep, policy: LoadTest, budget: LatencyBudget, *, excused: int) -> list[Finding]:
    """Errors and every budgeted quantile, with this many of the bad requests taken as good."""
    budgets: dict[str, float | None] = budget.model_dump()
    failed = max(step.failed - excused, 0)
    findings = [_claim("errors", step, failed, policy.max_errors, f"{failed} of {step.requests} failed")]
    for name, count in step.over.items():
        measured = float(getattr(step, name))
        words = f"{name} is {measured:.4g} ms, the budget {budgets[name]:.4g} ms"
        over = max(count - excused, 0)
        findings.append(_claim(name, step, over, 1 - QUANTILES[name], words, measured, budgets[name]))
    return findings


def _claim(
    name: str,
    step: LoadStep,
    count: int,
    allowed: float,
    words: str,
    measured: float | None = None,
    budget: float | None = None,
) -> Finding:
    """Whether `count` of the step's requests is more than the share `allowed`, beyond chance."""
    if count <= allowed * step.requests:
        outcome = Outcome.PASS
    else:
        from scipy.stats import binom  # a second of every flow's start, for a sum that few of them need

        chance = float(binom.sf(count - 1, step.requests, allowed))
        outcome = Outcome.FAIL if chance < _ALPHA else Outcome.INCONCLUSIVE
    shown = measured if measured is not None and math.isfinite(measured) else None
    return Finding(name, outcome, words, candidate=shown, needed=budget, units=step.requests)


def _quantile(waited: NDArray[np.float64], q: float) -> float:
    """The order statistic; interpolation would make infinity of a neighbour."""
    return float(np.sort(waited)[min(len(waited) - 1, math.ceil(q * len(waited)) - 1)])


def _busy(sent: NDArray[np.float64], done: NDArray[np.float64]) -> float:
    """The 99th percentile over time of how many requests were under way."""
    known = np.isfinite(sent) & np.isfinite(done)
    if not known.any():
        return 0.0
    times = np.concatenate([sent[known], done[known]])
    steps = np.concatenate([np.ones(known.sum()), -np.ones(known.sum())])
    order = np.lexsort((steps, times))
    level = np.cumsum(steps[order])[:-1]
    held = np.diff(times[order])
    if held.sum() <= 0:
        return float(level.max(initial=0.0))
    rank = np.argsort(level)
    share = np.cumsum(held[rank]) / held.sum()
    return float(level[rank][np.searchsorted(share, 0.99)])
