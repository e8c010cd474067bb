"""The offline gate: is the candidate good enough on held-out rows, and no worse than the champion?

Absolute thresholds look at the candidate's value. Non-regression looks at the paired interval of
the difference: PASS where even its bad end is within the margin, FAIL where even its good end is
beyond it, INCONCLUSIVE between (more rows or a wider margin would decide). A metric that cannot
be computed is an ERROR, never a pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.policy import Evaluation, Metric, Slice
from evals.intervals import Interval, generator, moment_interval, resampled_interval
from evals.metrics import (
    MORE_IS_BETTER,
    CustomMetric,
    MetricError,
    Predictions,
    chosen_classes,
    measure,
    moments,
)
from evals.verdict import Finding, Outcome, Verdict, conclude

if TYPE_CHECKING:
    import pandas as pd

_BINS = 4
_CALLS_PER_QUANTILE = {"p50": 10, "p95": 20, "p99": 100}


@dataclass(frozen=True, slots=True)
class Scores:
    """Both versions on the same held-out rows.

    `labels` (n,), `candidate` and `champion` in the same order (None: there is no champion yet),
    `rows` the n input rows for slices, `*_ms` latencies of single calls, `digest` of the data set
    (seeds the intervals; taken from the labels where it is empty).
    """

    labels: NDArray[Any]
    candidate: Predictions
    champion: Predictions | None = None
    rows: pd.DataFrame | None = None
    candidate_ms: ArrayLike = ()
    champion_ms: ArrayLike = ()
    digest: str = ""
    functions: Mapping[str, CustomMetric] = field(default_factory=dict)
    """The policy's dotted callables, resolved by the caller."""


def evaluate(policy: Evaluation, scores: Scores) -> Verdict:
    """The gate's verdict with one finding per threshold, comparison, slice and latency budget."""
    rows = int(scores.labels.shape[0])
    if rows < policy.min_rows:
        reason = f"{rows} held-out rows; the policy wants at least {policy.min_rows} (evaluation.min_rows)"
        return Verdict(
            Outcome.INCONCLUSIVE, reason, (Finding("rows", Outcome.INCONCLUSIVE, reason, units=rows),)
        )
    if not scores.digest:
        digest = hashlib.sha256(repr(scores.labels.tolist()).encode()).hexdigest()
        scores = replace(scores, digest=digest)
    blocking: list[Finding] = []
    for metric in policy.metrics:
        blocking.extend(_metric_findings(metric, policy, scores))
    blocking.extend(_latency_findings(policy, scores))
    noted: list[Finding] = []
    for spec in policy.slices:
        for finding in _slice_findings(spec, policy, scores):
            blocks = spec.required or finding.outcome in (Outcome.FAIL, Outcome.ERROR)
            (blocking if blocks else noted).append(finding)
    verdict = conclude(
        tuple(blocking), nothing="no champion to compare with, and no absolute threshold is set"
    )
    return replace(verdict, findings=(*blocking, *noted))


class _Contest:
    """One metric on one set of rows, for one or two versions."""

    def __init__(
        self, name: str, scores: Scores, classes: NDArray[Any], within: NDArray[np.int64] | None
    ) -> None:
        self.name = name
        self._classes = classes
        self._function = scores.functions.get(name)
        self._digest = scores.digest
        self.labels = scores.labels if within is None else scores.labels[within]
        self.candidate = scores.candidate if within is None else scores.candidate.take(within)
        champion = scores.champion
        self.champion = champion if champion is None or within is None else champion.take(within)

    @property
    def rows(self) -> int:
        return int(self.labels.shape[0])

    def value(self, predictions: Predictions, rows: NDArray[np.int64] | None = None) -> float:
        """Raises MetricError."""
        labels = self.labels if rows is None else self.labels[rows]
        part = predictions if rows is None else predictions.take(rows)
        if self.name in MORE_IS_BETTER:
            return measure(self.name, labels, part, self._classes)
        if self._function is None:
            raise MetricError(f"{self.name} is neither built in nor was its callable given.")
        said = part.values if part.values is not None else chosen_classes(part, self._classes)
        try:
            value = float(self._function(labels, said))
        except Exception as error:
            raise MetricError(f"{self.name} raised {type(error).__name__}: {error}") from error
        if not np.isfinite(value):
            raise MetricError(f"{self.name} is {value}.")
        return value

    def interval(self, champion: Predictions, *, confidence: float, purpose: str) -> Interval:
        """Paired interval of candidate minus champion. Raises MetricError."""
        rng = generator(self._digest, self.name, purpose)
        if self.name in MORE_IS_BETTER:
            ours = moments(self.name, self.labels, self.candidate, self._classes)
            theirs = moments(self.name, self.labels, champion, self._classes)
            if ours is not None and theirs is not None:
                return moment_interval(ours, theirs, confidence=confidence, rng=rng)

        def difference(rows: NDArray[np.int64]) -> float:
            return self.value(self.candidate, rows) - self.value(champion, rows)

        return resampled_interval(difference, self.rows, confidence=confidence, rng=rng)


def _more_is_better(metric: Metric) -> bool:
    """A custom metric says by its threshold which way is better; without one, more is."""
    return MORE_IS_BETTER.get(metric.name, metric.max is None)


def _classes(scores: Scores) -> NDArray[Any]:
    return np.unique(scores.labels)


def _metric_findings(metric: Metric, policy: Evaluation, scores: Scores) -> Iterator[Finding]:
    contest = _Contest(metric.name, scores, _classes(scores), None)
    try:
        ours = contest.value(contest.candidate)
        for bound, broken in ((metric.min, _under(ours, metric.min)), (metric.max, _over(ours, metric.max))):
            if bound is not None:
                word = "at least" if bound is metric.min else "at most"
                outcome = Outcome.FAIL if broken else Outcome.PASS
                reason = f"{metric.name} is {ours:.4g}, the policy wants {word} {bound:g}"
                yield Finding(metric.name, outcome, reason, candidate=ours, units=contest.rows)
        if contest.champion is not None and metric.margin is not None:
            yield _comparison(
                contest, contest.champion, metric, metric.margin, policy.confidence, metric.name
            )
    except MetricError as error:
        yield Finding(metric.name, Outcome.ERROR, str(error), units=contest.rows)


def _under(value: float, bound: float | None) -> bool:
    return bound is not None and value < bound


def _over(value: float, bound: float | None) -> bool:
    return bound is not None and value > bound


def _comparison(
    contest: _Contest, champion: Predictions, metric: Metric, margin: float, confidence: float, name: str
) -> Finding:
    ours, theirs = contest.value(contest.candidate), contest.value(champion)
    interval = contest.interval(champion, confidence=confidence, purpose=name)
    better = _more_is_better(metric)
    # How much worse: positive is bad, whichever way the metric counts.
    least, most = (-interval.high, -interval.low) if better else (interval.low, interval.high)
    if most <= margin:
        outcome, meaning = Outcome.PASS, "better" if most < 0 else f"no worse than the margin {margin:g}"
    elif least > margin:
        outcome, meaning = Outcome.FAIL, f"worse by more than the margin {margin:g}"
    else:
        outcome, meaning = (
            Outcome.INCONCLUSIVE,
            f"undecided at margin {margin:g}: more rows or a wider margin",
        )
    text = f"{name}: candidate {ours:.4g}, champion {theirs:.4g}"
    text += f", difference {interval.low:+.4g} to {interval.high:+.4g} ({confidence:.1%} paired): {meaning}"
    return Finding(
        name,
        outcome,
        text,
        candidate=ours,
        champion=theirs,
        low=interval.low,
        high=interval.high,
        units=contest.rows,
    )


def _slice_findings(spec: Slice, policy: Evaluation, scores: Scores) -> Iterator[Finding]:
    """Every value (numbers: quartile bin) that has enough rows; the interval's error is shared by all."""
    name = f"{spec.metric} where {spec.column}"
    metric = next((one for one in policy.metrics if one.name == spec.metric), None)
    if metric is None:
        reason = f"slice by {spec.column}: {spec.metric} is not among evaluation.metrics"
        yield Finding(name, Outcome.ERROR, reason)
        return
    if scores.rows is None or spec.column not in scores.rows.columns:
        yield Finding(name, Outcome.ERROR, f"slice by {spec.column}: the held-out rows have no such column")
        return
    if scores.champion is None:
        return
    groups = _groups(scores.rows, spec.column)
    large = {value: rows for value, rows in groups.items() if rows.size >= spec.min_rows}
    small = [value for value in groups if value not in large]
    if small:
        few = ", ".join(small[:5]) + (", ..." if len(small) > 5 else "")
        reason = f"{name} in {few}: under {spec.min_rows} rows, not judged"
        units = sum(int(groups[value].size) for value in small)
        yield Finding(name, Outcome.INCONCLUSIVE, reason, units=units)
    confidence = 1 - (1 - policy.confidence) / max(len(large), 1)
    for value, rows in large.items():
        contest = _Contest(spec.metric, scores, _classes(scores), rows)
        label = f"{name} = {value}"
        try:
            yield _comparison(
                contest, contest.champion or contest.candidate, metric, spec.margin, confidence, label
            )
        except MetricError as error:
            yield Finding(label, Outcome.ERROR, f"{label}: {error}", units=int(rows.size))


def _groups(frame: pd.DataFrame, column: str) -> dict[str, NDArray[np.int64]]:
    """Row numbers by slice: every value, or quartile bins of numbers with more than 4 values."""
    import pandas as pd

    values = pd.Series(np.asarray(frame[column]))
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if numeric and values.nunique() > _BINS:
        values = pd.Series(np.asarray(pd.qcut(values, _BINS, duplicates="drop")))
    text = np.array(["missing" if pd.isna(value) else str(value) for value in values], dtype=object)
    codes, names = pd.factorize(text, sort=True)
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}


def _latency_findings(policy: Evaluation, scores: Scores) -> Iterator[Finding]:
    ours = np.asarray(scores.candidate_ms, np.float64)
    theirs = np.asarray(scores.champion_ms, np.float64)
    for name, calls in _CALLS_PER_QUANTILE.items():
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
        q = int(name[1:]) / 100
        value = float(np.quantile(ours, q))
        outcome = Outcome.FAIL if value > limit else Outcome.PASS
        yield Finding(
            metric,
            outcome,
            f"{metric} is {value:.3g} ms a call, the budget is {limit:g} ms",
            candidate=value,
            champion=float(np.quantile(theirs, q)) if theirs.size else None,
            units=int(ours.size),
        )
