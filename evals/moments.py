"""What single rows contribute to a metric, so that an interval needs no second look at the data.

Each metric is a function of means over rows (`Moments`): all resamples of all rows are then one
matrix product, and memory stays at a few numbers a row. Where a metric is no such function it is
linearised (each row's influence, the delta method): ROC AUC by its placement values (DeLong et al.
1988), the F1 of many classes by its derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evals.metrics import (
    CALIBRATION_BINS,
    FloatArray,
    Predictions,
    brier_rows,
    calibration_gaps,
    chosen_classes,
    numbers,
    probabilities,
    rank_cut,
)


@dataclass(frozen=True, slots=True)
class Moments:
    """A metric as `of(means over rows)`; `rows` has shape (n, k), `of` maps (..., k) to (...)."""

    rows: FloatArray
    of: Callable[[FloatArray], FloatArray]


def moments(
    name: str,
    labels: NDArray[Any],
    predictions: Predictions,
    classes: NDArray[Any],
    groups: NDArray[Any] | None = None,
) -> Moments | None:
    """A built-in metric as a function of means over rows (ndcg: over queries); None where it is undefined."""
    if name in ("mae", "mape", "rmse"):
        return _errors(name, labels.astype(np.float64), numbers(name, predictions))
    if name.startswith("ndcg"):
        assert groups is not None  # its value was measured before
        rows = ndcg_of_queries(labels.astype(np.float64), numbers(name, predictions), groups, rank_cut(name))
        return _mean(rows)
    if name in ("accuracy", "f1"):
        predicted = chosen_classes(predictions, classes)
        if name == "accuracy":
            return _mean((predicted == labels).astype(np.float64))
        return _f1(labels, predicted, classes)
    matrix = probabilities(name, predictions, classes)
    if name == "brier":
        return _mean(brier_rows(labels, matrix, classes))
    if name == "log_loss":
        of_label = matrix[np.arange(labels.size), np.searchsorted(classes, labels)]
        eps = np.finfo(np.float64).eps
        return _mean(-np.log(np.clip(of_label / matrix.sum(axis=1), eps, 1 - eps)))
    if name == "calibration_error":
        bins, gaps = calibration_gaps(labels, matrix, classes)
        spread = np.zeros((labels.size, CALIBRATION_BINS))
        spread[np.arange(labels.size), bins] = gaps
        return Moments(spread, lambda mean: np.abs(mean).sum(axis=-1))
    if classes.size == 2:
        area = _placements(labels == classes[1], matrix[:, 1])
        return None if area is None else _mean(area)
    mean: FloatArray = np.zeros(labels.size)
    for place, known in enumerate(classes):
        area = _placements(labels == known, matrix[:, place])
        if area is None:
            return None
        mean = mean + area / classes.size
    return _mean(mean)


def clustered(of_rows: Moments, groups: NDArray[np.int64]) -> Moments:
    """The same metric with whole groups as what is resampled; `groups` (n,) are codes 0 to g - 1.

    Rows of one user or one day resemble each other: intervals over single rows would be too narrow.
    """
    count, width = int(groups.max()) + 1, of_rows.rows.shape[1]
    sums = np.zeros((count, width + 1))
    for part in range(width):
        sums[:, part] = np.bincount(groups, weights=of_rows.rows[:, part], minlength=count)
    sums[:, width] = np.bincount(groups, minlength=count)

    def of(mean: FloatArray) -> FloatArray:
        return of_rows.of(mean[..., :width] / mean[..., width:])

    return Moments(sums, of)


def ndcg_of_queries(
    labels: FloatArray, values: FloatArray, groups: NDArray[Any], cut: int | None
) -> FloatArray:
    """Each query's NDCG@cut, as scikit-learn has it: rows of equal value share their places' discounts.

    Queries with one row have no order and are left out; one without any relevant row counts as 0.
    """
    _, codes = np.unique(groups, return_inverse=True)
    sizes = np.bincount(codes)
    kept = sizes[codes] > 1
    codes = np.unique(codes[kept], return_inverse=True)[1]
    labels, values = labels[kept], values[kept]
    gained = _discounted(labels, values, codes, cut)
    best = _discounted(labels, labels, codes, cut)
    return np.divide(gained, best, out=np.zeros_like(best), where=best > 0)


def _discounted(gains: FloatArray, values: FloatArray, codes: NDArray[Any], cut: int | None) -> FloatArray:
    order = np.lexsort((-values, codes))
    codes, gains, values = codes[order], gains[order], values[order]
    starts = np.searchsorted(codes, np.arange(int(codes[-1]) + 1))
    place = np.arange(codes.size) - starts[codes]
    discount = 1 / np.log2(place + 2)
    if cut is not None:
        discount[place >= cut] = 0
    new = np.r_[True, (codes[1:] != codes[:-1]) | (values[1:] != values[:-1])]
    tie = np.cumsum(new) - 1
    mean_gain = np.bincount(tie, weights=gains) / np.bincount(tie)
    return np.bincount(codes, weights=mean_gain[tie] * discount).astype(np.float64)


def _mean(rows: FloatArray) -> Moments:
    return Moments(rows[:, None], lambda mean: mean[..., 0])


def _errors(name: str, labels: FloatArray, values: FloatArray) -> Moments:
    error = np.abs(labels - values)
    if name == "rmse":
        return Moments(error[:, None] ** 2, lambda mean: np.sqrt(np.maximum(mean[..., 0], 0)))
    if name == "mape":
        error = error / np.maximum(np.abs(labels), np.finfo(np.float64).eps)
    return _mean(error)


def _placements(positive: NDArray[np.bool_], score: FloatArray) -> FloatArray | None:
    """ROC AUC as a mean over rows (n,): each row's share of rightly ordered pairs, linearised."""
    from scipy.stats import rankdata

    n1, n0 = int(positive.sum()), int((~positive).sum())
    if n1 == 0 or n0 == 0:
        return None
    ranks = rankdata(score)
    inside = np.empty_like(score)
    inside[positive] = rankdata(score[positive])
    inside[~positive] = rankdata(score[~positive])
    above = np.where(positive, (ranks - inside) / n0, 1 - (ranks - inside) / n1)
    area = float(above[positive].mean())
    weight = np.where(positive, score.size / n1, score.size / n0)
    return area + weight * (above - area)


def _f1(labels: NDArray[Any], predicted: NDArray[Any], classes: NDArray[Any]) -> Moments:
    """F1 of the positive class from true positives and sizes; of many classes linearised."""
    if classes.size == 2:
        truth, said = labels == classes[1], predicted == classes[1]
        rows = np.stack([truth & said, truth, said], axis=1).astype(np.float64)

        def f1(mean: FloatArray) -> FloatArray:
            sizes = mean[..., 1] + mean[..., 2]
            return np.divide(2 * mean[..., 0], sizes, out=np.zeros_like(sizes), where=sizes > 0)

        return Moments(rows, f1)
    truth, said = np.searchsorted(classes, labels), np.searchsorted(classes, predicted)
    right = truth == said
    hits = np.bincount(truth[right], minlength=classes.size) / labels.size
    sizes = (np.bincount(truth, minlength=classes.size) + np.bincount(said, minlength=classes.size)) / (
        labels.size
    )
    safe = np.where(sizes > 0, sizes, 1)
    score, slope = 2 * hits / safe, 2 * hits / safe**2
    influence = np.where(right, 2 / safe[truth], 0) - slope[truth] - slope[said]
    return _mean(float(score.mean()) + influence / classes.size)
