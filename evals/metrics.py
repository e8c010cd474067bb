"""Offline metrics: what they are called, which way is better, and what each row contributes.

Values come from scikit-learn. For paired intervals each metric is also written as a function of
means over rows (`Moments`), so that all resamples of all rows are one matrix product; ROC AUC by
its placement values (DeLong et al. 1988), linearised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Task: TypeAlias = Literal["classification", "regression"]
CustomMetric: TypeAlias = Callable[[NDArray[Any], NDArray[Any]], float]
"""(labels, predicted classes or values) -> number; a policy's dotted callable, resolved by the caller."""

MORE_IS_BETTER: Mapping[str, bool] = {
    "accuracy": True,
    "f1": True,
    "roc_auc": True,
    "log_loss": False,
    "brier": False,
    "calibration_error": False,
    "mae": False,
    "rmse": False,
    "mape": False,
}
_NEEDS_PROBABILITY = frozenset({"roc_auc", "log_loss", "brier", "calibration_error"})
_CLASSIFICATION = frozenset({"accuracy", "f1"}) | _NEEDS_PROBABILITY
_CALIBRATION_BINS = 15


class MetricError(Exception):
    """A metric could not be computed: nothing was measured, so nothing may be concluded."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one version answered for the held-out rows, in their order.

    Regression: `values`. Classification: `classes`, `probability` (shape (n,) of the positive
    class, or (n, k) in the order of the sorted classes), or both.
    """

    values: FloatArray | None = None
    classes: NDArray[Any] | None = None
    probability: FloatArray | None = None

    @classmethod
    def read(cls, output: object, labels: NDArray[Any], task: Task) -> Predictions:
        """Understand a model's plain output (array-like of shape (n,) or (n, k)).

        For classification, values that all are labels are classes; other numbers in [0, 1] are
        probabilities. Raises MetricError for anything else.
        """
        array = np.asarray(output)
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.shape[0] != labels.shape[0]:
            raise MetricError(f"{labels.shape[0]} rows were asked, {array.shape[0]} predictions came back.")
        if task == "regression":
            try:
                return cls(values=array.astype(np.float64))
            except (TypeError, ValueError) as error:
                raise MetricError(
                    f"Predictions of a regression must be numbers, found {array.dtype}."
                ) from error
        if array.ndim == 1 and bool(np.isin(array, labels).all()):
            return cls(classes=array)
        if array.dtype.kind in "fiu" and bool(((array >= 0) & (array <= 1)).all()):
            return cls(probability=array.astype(np.float64))
        known = ", ".join(str(label) for label in np.unique(labels)[:5])
        raise MetricError(
            f"Predictions are neither probabilities nor the classes seen in the labels ({known})."
        )

    def take(self, rows: NDArray[Any]) -> Predictions:
        """The same for some rows."""
        parts = (self.values, self.classes, self.probability)
        return Predictions(*(None if part is None else part[rows] for part in parts))


@dataclass(frozen=True, slots=True)
class Moments:
    """A metric as `of(means over rows)`; `rows` has shape (n, k), `of` maps (..., k) to (...)."""

    rows: FloatArray
    of: Callable[[FloatArray], FloatArray]


def is_known(name: str) -> bool:
    """Whether scikit-learn's metric of this name is built in (else it is a custom callable)."""
    return name in MORE_IS_BETTER


def measure(name: str, labels: NDArray[Any], predictions: Predictions, classes: NDArray[Any]) -> float:
    """One built-in metric. `classes` are all classes of the data set, sorted.

    Raises MetricError where it is undefined (one class only, NaN, probabilities missing).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = _measure(name, labels, predictions, classes)
    except ValueError as error:
        raise MetricError(f"{name} could not be computed: {error}") from error
    if not np.isfinite(value):
        raise MetricError(f"{name} is {value} on these {labels.size} rows.")
    return value


def _measure(name: str, labels: NDArray[Any], predictions: Predictions, classes: NDArray[Any]) -> float:
    from sklearn import metrics

    if name not in _CLASSIFICATION:
        values = _values(name, predictions)
        if name == "mae":
            return float(metrics.mean_absolute_error(labels, values))
        if name == "rmse":
            return float(metrics.root_mean_squared_error(labels, values))
        return float(metrics.mean_absolute_percentage_error(labels, values))
    if name in _NEEDS_PROBABILITY:
        matrix = _probability(name, predictions, classes)
        if name == "log_loss":
            return float(metrics.log_loss(labels, matrix, labels=classes))
        if name == "brier":
            return float(np.mean(_brier_rows(labels, matrix, classes)))
        if name == "calibration_error":
            return _calibration_error(labels, matrix, classes)
        if classes.size == 2:
            return float(metrics.roc_auc_score(labels == classes[1], matrix[:, 1]))
        return float(metrics.roc_auc_score(labels, matrix, multi_class="ovr", labels=classes))
    predicted = chosen_classes(predictions, classes)
    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predicted))
    if classes.size == 2:
        return float(metrics.f1_score(labels == classes[1], predicted == classes[1]))
    return float(metrics.f1_score(labels, predicted, labels=classes, average="macro"))


def moments(
    name: str, labels: NDArray[Any], predictions: Predictions, classes: NDArray[Any]
) -> Moments | None:
    """The metric as a function of means over rows; None where it has no such form."""
    if name in ("mae", "mape", "rmse"):
        error = np.abs(labels.astype(np.float64) - _values(name, predictions))
        if name == "rmse":
            return Moments(error[:, None] ** 2, lambda mean: np.sqrt(np.maximum(mean[..., 0], 0)))
        if name == "mape":
            error = error / np.maximum(np.abs(labels.astype(np.float64)), np.finfo(np.float64).eps)
        return Moments(error[:, None], lambda mean: mean[..., 0])
    if name in ("log_loss", "brier"):
        matrix = _probability(name, predictions, classes)
        if name == "brier":
            return Moments(_brier_rows(labels, matrix, classes)[:, None], lambda mean: mean[..., 0])
        of_label = matrix[np.arange(labels.size), np.searchsorted(classes, labels)]
        eps = np.finfo(np.float64).eps
        return Moments(-np.log(np.clip(of_label, eps, 1 - eps))[:, None], lambda mean: mean[..., 0])
    if name == "roc_auc":
        if classes.size != 2:
            return None
        return _placements(labels == classes[1], _probability(name, predictions, classes)[:, 1])
    if name == "accuracy":
        right = chosen_classes(predictions, classes) == labels
        return Moments(right.astype(np.float64)[:, None], lambda mean: mean[..., 0])
    if name == "f1":
        return _f1_moments(labels, chosen_classes(predictions, classes), classes)
    return None


def chosen_classes(predictions: Predictions, classes: NDArray[Any]) -> NDArray[Any]:
    """The predicted classes; from probabilities the likeliest (binary: at 0.5)."""
    if predictions.classes is not None:
        return predictions.classes
    matrix = _probability("a class metric", predictions, classes)
    return classes[np.argmax(matrix, axis=1)]


def _values(name: str, predictions: Predictions) -> FloatArray:
    if predictions.values is None:
        raise MetricError(f"{name} needs numbers; the predictions are classes. Next: set evaluation.task.")
    return predictions.values


def _probability(name: str, predictions: Predictions, classes: NDArray[Any]) -> FloatArray:
    """Shape (n, classes)."""
    probability = predictions.probability
    if probability is None:
        raise MetricError(f"{name} needs probabilities; the model answers classes only.")
    if probability.ndim == 1:
        probability = np.stack([1 - probability, probability], axis=1)
    if probability.shape[1] != classes.size:
        raise MetricError(
            f"{name}: {probability.shape[1]} probabilities a row, {classes.size} classes in the labels."
        )
    return probability


def _brier_rows(labels: NDArray[Any], matrix: FloatArray, classes: NDArray[Any]) -> FloatArray:
    """Squared distance of each row; for two classes that of the positive one (sklearn's scaling)."""
    truth = (labels[:, None] == classes).astype(np.float64)
    distance = ((matrix - truth) ** 2).sum(axis=1)
    return distance / 2 if classes.size == 2 else distance


def _calibration_error(labels: NDArray[Any], matrix: FloatArray, classes: NDArray[Any]) -> float:
    """Expected calibration error of the likeliest class in 15 equal bins (Guo et al. 2017)."""
    confidence = matrix.max(axis=1)
    right = (classes[np.argmax(matrix, axis=1)] == labels).astype(np.float64)
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(np.int64), _CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=_CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / labels.size)


def _placements(positive: NDArray[np.bool_], score: FloatArray) -> Moments | None:
    """ROC AUC as a mean over rows: each row's share of rightly ordered pairs, linearised."""
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
    return Moments((area + weight * (above - area))[:, None], lambda mean: mean[..., 0])


def _f1_moments(labels: NDArray[Any], predicted: NDArray[Any], classes: NDArray[Any]) -> Moments:
    """F1 of the positive class, or the mean over all classes, from true positives and sizes."""
    of = classes[1:] if classes.size == 2 else classes
    truth, said = labels[:, None] == of, predicted[:, None] == of
    rows = np.stack([truth & said, truth, said], axis=2).astype(np.float64)

    def f1(mean: FloatArray) -> FloatArray:
        parts = mean.reshape(*mean.shape[:-1], of.size, 3)
        sizes = parts[..., 1] + parts[..., 2]
        score = np.divide(2 * parts[..., 0], sizes, out=np.zeros_like(sizes), where=sizes > 0)
        return score.mean(axis=-1)

    return Moments(rows.reshape(labels.size, -1), f1)
