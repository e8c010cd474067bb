"""One metric on one set of rows: both versions' values, and what is known of their difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from configs.evaluation import Metric
from evals.intervals import Difference, PairedShares, generator, moment_draws, resampled_draws
from evals.metrics import (
    CustomMetric,
    MetricError,
    Predictions,
    chosen_classes,
    is_known,
    measure,
    more_is_better,
)
from evals.moments import clustered, moments
from evals.verdict import Finding, Outcome

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Scores:
    """Both versions on the same held-out rows.

    `labels` (n,), `candidate` and `champion` in the same order (None: there is no champion yet),
    `rows` the n input rows for slices, `groups` (n,) what rows belong together, `*_ms` latencies of
    single calls, `digest` of the data set (seeds the intervals; taken from the labels where empty).
    """

    labels: NDArray[Any]
    candidate: Predictions
    champion: Predictions | None = None
    rows: pd.DataFrame | None = None
    groups: NDArray[Any] | None = None
    candidate_ms: ArrayLike = ()
    champion_ms: ArrayLike = ()
    digest: str = ""
    functions: Mapping[str, CustomMetric] = field(default_factory=dict)
    """The policy's dotted callables, resolved by the caller."""


class Contest:
    """One metric on one set of rows (None: all), for one or two versions."""

    def __init__(self, name: str, scores: Scores, within: NDArray[np.int64] | None = None) -> None:
        self.name = name
        self._classes = np.unique(scores.labels)
        self._function = scores.functions.get(name)
        self._digest = scores.digest
        self.labels = scores.labels if within is None else scores.labels[within]
        self.candidate = scores.candidate if within is None else scores.candidate.take(within)
        champion = scores.champion
        self.champion = champion if champion is None or within is None else champion.take(within)
        groups = scores.groups if within is None or scores.groups is None else scores.groups[within]
        self._groups: NDArray[np.int64] | None = None
        if groups is not None:
            self._groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)

    @property
    def rows(self) -> int:
        """How many rows."""
        return int(self.labels.shape[0])

    def value(self, predictions: Predictions, rows: NDArray[np.int64] | None = None) -> float:
        """The metric of one version. Raises MetricError."""
        labels = self.labels if rows is None else self.labels[rows]
        part = predictions if rows is None else predictions.take(rows)
        if is_known(self.name):
            groups = self._groups if rows is None or self._groups is None else self._groups[rows]
            return measure(self.name, labels, part, self._classes, groups)
        if self._function is None:
            raise MetricError(f"{self.name} is neither built in nor was its callable given.")
        said = part.values if part.values is not None else chosen_classes(part, self._classes)
        try:
            value = float(self._function(labels, said))
        except Exception as error:
            raise MetricError(
                f"{self.name} raised {type(error).__name__}: {error}. Next: mend the callable"
            ) from error
        if not np.isfinite(value):
            raise MetricError(f"{self.name} is {value}. Next: mend the callable or the rows it is given")
        return value

    def difference(self, champion: Predictions, *, purpose: str) -> Difference:
        """Candidate minus champion. Raises MetricError."""
        rng = generator(self._digest, self.name, purpose)
        if is_known(self.name):
            if self.name == "accuracy" and self._groups is None:
                return self._paired_shares(champion)
            ours = moments(self.name, self.labels, self.candidate, self._classes, self._groups)
            theirs = moments(self.name, self.labels, champion, self._classes, self._groups)
            if ours is None or theirs is None:
                raise MetricError(f"{self.name} is undefined: every class is needed among these rows.")
            if self._groups is not None and not self.name.startswith("ndcg"):
                ours, theirs = clustered(ours, self._groups), clustered(theirs, self._groups)
            return moment_draws(ours, theirs, rng=rng)

        def difference(rows: NDArray[np.int64]) -> float:
            return self.value(self.candidate, rows) - self.value(champion, rows)

        return resampled_draws(difference, self.rows, rng=rng, groups=self._groups)

    def same_answers(self, champion: Predictions) -> bool:
        """Whether both versions answer every row alike: then there is nothing to be worse by."""
        pairs = zip(self.candidate.parts, champion.parts, strict=True)
        return all(
            (ours is None) == (theirs is None)
            and (ours is None or theirs is None or np.array_equal(ours, theirs))
            for ours, theirs in pairs
        )

    def _paired_shares(self, champion: Predictions) -> PairedShares:
        ours, theirs = (
            chosen_classes(one, self._classes) == self.labels for one in (self.candidate, champion)
        )
        gained, lost = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
        return PairedShares(gained, lost, self.rows)


def compare(
    contest: Contest,
    metric: Metric,
    *,
    margin: float,
    confidence: float,
    family: int,
    label: str,
    blocks: bool = True,
) -> Finding:
    """One comparison on its paired interval. Raises MetricError.

    PASS needs the bad end within the margin at `confidence`; all comparisons must pass, so none
    needs a correction (intersection-union). FAIL needs the good end beyond the margin at the
    confidence that `family` comparisons share (Bonferroni): among many, one looks bad by chance.
    """
    champion = contest.champion
    assert champion is not None  # callers compare only where there is one
    ours, theirs = contest.value(contest.candidate), contest.value(champion)
    difference = contest.difference(champion, purpose=label)
    interval = difference.interval(confidence)
    shared = 1 - (1 - confidence) / family
    strict = difference.interval(shared)
    way = more_is_better(metric.name)
    # A custom metric says by its threshold which way is better; without one, more is.
    better = metric.max is None if way is None else way
    # How much worse: positive is bad, whichever way the metric counts.
    most = -interval.low if better else interval.high
    least = -interval.high if better else interval.low
    proven = -strict.high if better else strict.low
    if contest.same_answers(champion):
        outcome, meaning = Outcome.PASS, "both versions answer every row alike"
    elif most <= margin:
        outcome, meaning = Outcome.PASS, "better" if most < 0 else f"no worse than the margin {margin:g}"
    elif proven > margin:
        outcome, meaning = Outcome.FAIL, f"worse by more than the margin {margin:g}"
    elif least > margin:
        outcome = Outcome.INCONCLUSIVE
        meaning = (
            f"worse than the margin {margin:g}, but not at the {shared:.2%} that {family} comparisons share: "
            "more rows would decide"
        )
    else:
        outcome = Outcome.INCONCLUSIVE
        meaning = f"undecided at margin {margin:g}: more rows or a wider margin would decide"
    text = f"{label}: candidate {ours:.4g}, champion {theirs:.4g}"
    text += f", difference {interval.low:+.4g} to {interval.high:+.4g} ({confidence:.1%} paired): {meaning}"
    return Finding(
        label,
        outcome,
        text,
        candidate=ours,
        champion=theirs,
        low=interval.low,
        high=interval.high,
        units=contest.rows,
        blocks=blocks or outcome in (Outcome.FAIL, Outcome.ERROR),
        bound=-margin if better else margin,
    )
