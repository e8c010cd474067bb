"""Offline metrics: what they are called, which way is better, and their values.

Values come from scikit-learn; what single rows contribute to them, for intervals, is in `moments`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Task: TypeAlias = Literal["classification", "regression", "ranking"]
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
    "ndcg": True,
}
_CUT = re.compile(r"ndcg@([1-9][0-9]*)")
_NEEDS_PROBABILITY = frozenset({"roc_auc", "log_loss", "brier", "calibration_error"})
_CLASSIFICATION = frozenset({"accuracy", "f1"}) | _NEEDS_PROBABILITY
CALIBRATION_BINS = 15


class MetricError(Exception):
    """A metric could not be computed: nothing was measured, so nothing may be concluded."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one version answered for the held-out rows, in their order.

    Regression and ranking: `values`. Classification: `classes`, `probability` (shape (n,) of the positive
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
        if task != "classification":
            try:
                return cls(values=array.astype(np.float64))
            except (TypeError, ValueError) as error:
                raise MetricError(
                    f"Predictions of a {task} must be numbers, found {array.dtype}. "
                    "Next: correct the model's output or evaluation.task."
                ) from error
        if array.ndim == 1 and bool(np.isin(array, labels).all()):
            return cls(classes=array)
        if array.dtype.kind in "fiu" and bool(((array >= 0) & (array <= 1)).all()):
            return cls(probability=array.astype(np.float64))
        known = ", ".join(str(label) for label in np.unique(labels)[:5])
        raise MetricError(
            f"Predictions are neither probabilities nor the classes seen in the labels ({known}). "
            "Next: correct the model's output, evaluation.label or evaluation.task."
        )

    @property
    def parts(self) -> tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None]:
        """Values, classes and probability."""
        return self.values, self.classes, self.probability

    def take(self, rows: NDArray[Any]) -> Predictions:
        """The same for some rows."""
        return Predictions(*(None if part is None else part[rows] for part in self.parts))


def more_is_better(name: str) -> bool | None:
    """Which way a built-in metric counts; None for a custom callable."""
    return MORE_IS_BETTER["ndcg"] if _CUT.fullmatch(name) else MORE_IS_BETTER.get(name)


def is_known(name: str) -> bool:
    """Whether the metric of this name is built in (else it is a custom callable)."""
    return more_is_better(name) is not None


def rank_cut(name: str) -> int | None:
    """The K of ndcg@K; None for all ranks, and for other metrics."""
    found = _CUT.fullmatch(name)
    return int(found[1]) if found else None


def measure(
    name: str,
    labels: NDArray[Any],
    predictions: Predictions,
    classes: NDArray[Any],
    groups: NDArray[Any] | None = None,
) -> float:
    """One built-in metric. `classes` are all classes of the data set, sorted; `groups` (n,) the queries.

    Raises MetricError where it is undefined (one class only, NaN, probabilities missing).
    """
    from sklearn.exceptions import UndefinedMetricWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)  # NaN, refused below
            value = _measure(name, labels, predictions, classes, groups)
    except ValueError as error:
        raise MetricError(f"{name} could not be computed: {error}") from error
    if not np.isfinite(value):
        raise MetricError(
            f"{name} is {value} on these {labels.size} rows. Next: hold out rows on which it is defined "
            "(every class, no infinite values)."
        )
    return value


def _measure(
    name: str,
    labels: NDArray[Any],
    predictions: Predictions,
    classes: NDArray[Any],
    groups: NDArray[Any] | None,
) -> float:
    from sklearn import metrics

    if name not in _CLASSIFICATION:
        values = numbers(name, predictions)
        if name.startswith("ndcg"):
            return _ndcg(labels.astype(np.float64), values, groups, rank_cut(name))
        if name == "mae":
            return float(metrics.mean_absolute_error(labels, values))
        if name == "rmse":
            return float(metrics.root_mean_squared_error(labels, values))
        return float(metrics.mean_absolute_percentage_error(labels, values))
    if name in _NEEDS_PROBABILITY:
        matrix = probabilities(name, predictions, classes)
        if name == "log_loss":
            return float(metrics.log_loss(labels, matrix, labels=classes))
        if name == "brier":
            return float(np.mean(brier_rows(labels, matrix, classes)))
        if name == "calibration_error":
            bins, gaps = calibration_gaps(labels, matrix, classes)
            return float(np.abs(np.bincount(bins, weights=gaps)).sum() / labels.size)
        if classes.size == 2:
            return float(metrics.roc_auc_score(labels == classes[1], matrix[:, 1]))
        return _one_against_rest(labels, matrix, classes)
    predicted = chosen_classes(predictions, classes)
    if name == "accuracy":
        return float(metrics.accuracy_score(labels, predicted))
    if classes.size == 2:
        return float(metrics.f1_score(labels == classes[1], predicted == classes[1]))
    return float(metrics.f1_score(labels, predicted, labels=classes, average="macro"))


def chosen_classes(predictions: Predictions, classes: NDArray[Any]) -> NDArray[Any]:
    """The predicted classes; from probabilities the likeliest (binary: at 0.5)."""
    if predictions.classes is not None:
        return predictions.classes
    matrix = probabilities("a class metric", predictions, classes)
    return classes[np.argmax(matrix, axis=1)]


def numbers(name: str, predictions: Predictions) -> FloatArray:
    if predictions.values is None:
        raise MetricError(f"{name} needs numbers; the predictions are classes. Next: set evaluation.task.")
    return predictions.values


def probabilities(name: str, predictions: Predictions, classes: NDArray[Any]) -> FloatArray:
    """Shape (n, classes)."""
    probability = predictions.probability
    if probability is None:
        raise MetricError(
            f"{name} needs probabilities; the model answers classes only. Next: register a model whose "
            "predict gives probabilities (pyfunc_predict_fn='predict_proba'), or measure accuracy or f1."
        )
    if probability.ndim == 1:
        probability = np.stack([1 - probability, probability], axis=1)
    if probability.shape[1] != classes.size:
        raise MetricError(
            f"{name}: {probability.shape[1]} probabilities a row, {classes.size} classes in the labels. "
            "Next: hold out rows of every class that the model knows."
        )
    return probability


def brier_rows(labels: NDArray[Any], matrix: FloatArray, classes: NDArray[Any]) -> FloatArray:
    """Squared distance of each row; for two classes that of the positive one (sklearn's scaling)."""
    truth = (labels[:, None] == classes).astype(np.float64)
    distance = ((matrix - truth) ** 2).sum(axis=1)
    return distance / 2 if classes.size == 2 else distance


def calibration_gaps(
    labels: NDArray[Any], matrix: FloatArray, classes: NDArray[Any]
) -> tuple[NDArray[np.int64], FloatArray]:
    """Each row's bin by the confidence in its likeliest class, and by how much it was too modest.

    The sizes of the bins' summed gaps, over n, are the expected calibration error (Guo et al. 2017).
    """
    confidence = matrix.max(axis=1)
    right = (classes[np.argmax(matrix, axis=1)] == labels).astype(np.float64)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return bins, right - confidence


def _one_against_rest(labels: NDArray[Any], matrix: FloatArray, classes: NDArray[Any]) -> float:
    """Mean over classes of the area of each one against all others; scores need not sum to 1."""
    from sklearn.metrics import roc_auc_score

    areas = [float(roc_auc_score(labels == known, matrix[:, place])) for place, known in enumerate(classes)]
    return float(np.mean(areas))


def _ndcg(labels: FloatArray, values: FloatArray, groups: NDArray[Any] | None, cut: int | None) -> float:
    """Mean over queries; queries of one size are one call of scikit-learn. Single rows have no order."""
    from sklearn.metrics import ndcg_score

    if groups is None:
        raise MetricError("ndcg needs queries. Next: name their column in evaluation.group.")
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    total = counted = 0.0
    for size in np.unique(sizes[sizes > 1]):
        rows = order[starts[sizes == size][:, None] + np.arange(size)]
        total += float(ndcg_score(labels[rows], values[rows], k=cut)) * rows.shape[0]
        counted += rows.shape[0]
    if not counted:
        raise MetricError("ndcg: no query has two rows or more. Next: check evaluation.group.")
    return total / counted
