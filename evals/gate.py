"""The offline gate: is the candidate good enough on held-out rows, and no worse than the champion?

Absolute thresholds look at the candidate's value. Non-regression looks at the paired interval of
the difference: PASS where even its bad end is within the margin, FAIL where even its good end is
beyond it, INCONCLUSIVE between (more rows or a wider margin would decide). A metric that cannot
be computed is an ERROR, never a pass.

Many comparisons: a candidate within all its margins is rejected by any of them with probability
at most (1 - confidence) / 2, for a FAIL is judged at the confidence that all comparisons and
slices share. A PASS needs every one of them, which needs no correction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from configs.evaluation import Evaluation, Metric
from evals import slices
from evals.budgets import judge_cost, judge_latency
from evals.contest import Contest, Scores, compare
from evals.metrics import MetricError
from evals.verdict import Finding, Outcome, Verdict, conclude

__all__ = ["Scores", "evaluate", "judge_scores"]

_NOTHING = (
    "no champion to compare with, and no absolute threshold is set. Next: set min or max of a metric "
    "in evaluation.metrics"
)


def evaluate(policy: Evaluation, scores: Scores, others: Iterable[Finding] = ()) -> Verdict:
    """The gate's verdict: one finding per threshold, comparison, slice and budget, and the `others`.

    `others` are findings from elsewhere (guards, evaluators, judges) that share in the verdict.
    They alone are never a PASS: something must have been asked of the scores.
    """
    asked = judge_scores(policy, scores)
    if not any(finding.blocks for finding in asked):
        asked = (*asked, Finding("thresholds", Outcome.INCONCLUSIVE, _NOTHING))
    return conclude((*asked, *others))


def judge_scores(policy: Evaluation, scores: Scores) -> tuple[Finding, ...]:
    """All that the policy asks of the scores."""
    rows = int(scores.labels.shape[0])
    if rows < policy.min_rows:
        reason = (
            f"{rows} held-out rows; the policy wants at least {policy.min_rows} (evaluation.min_rows). "
            "Next: hold out more rows"
        )
        return (Finding("rows", Outcome.INCONCLUSIVE, reason, units=rows),)
    if not scores.digest:
        digest = hashlib.sha256(repr(scores.labels.tolist()).encode()).hexdigest()
        scores = replace(scores, digest=digest)
    parts = slices.cut(policy, scores)
    compared = [metric for metric in policy.metrics if metric.margin is not None]
    family = max(1, len(compared) + sum(len(part.large) for part in parts))
    findings: list[Finding] = []
    for metric in policy.metrics:
        findings.extend(_metric(metric, policy, scores, family))
    findings.extend(judge_latency(policy, scores.candidate_ms, scores.champion_ms))
    findings.extend(judge_cost(policy, scores.candidate_ms, scores.champion_ms))
    for part in parts:
        findings.extend(slices.judge(part, policy, scores, family))
    return tuple(findings)


def _metric(metric: Metric, policy: Evaluation, scores: Scores, family: int) -> Iterator[Finding]:
    contest = Contest(metric.name, scores)
    try:
        ours = contest.value(contest.candidate)
        for bound, word in ((metric.min, "at least"), (metric.max, "at most")):
            if bound is not None:
                broken = ours < bound if bound is metric.min else ours > bound
                outcome = Outcome.FAIL if broken else Outcome.PASS
                reason = f"{metric.name} is {ours:.4g}, the policy wants {word} {bound:g}"
                yield Finding(metric.name, outcome, reason, candidate=ours, units=contest.rows)
        if contest.champion is not None and metric.margin is not None:
            yield compare(
                contest,
                metric,
                margin=metric.margin,
                confidence=policy.confidence,
                family=family,
                label=metric.name,
            )
    except MetricError as error:
        yield Finding(metric.name, Outcome.ERROR, str(error), units=contest.rows)
