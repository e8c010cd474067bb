"""Evidently's page on an evaluation: how the columns are spread, and its own metrics of both versions.

The champion's answers are Evidently's reference, the candidate's its current data, on the same
rows. For people only: no verdict reads it.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from configs.evaluation import Evaluation
from evals.contest import Scores
from evals.intervals import generator
from evals.metrics import Predictions, chosen_classes

Frame = Any
_ROWS_MAX = 20_000
_LABEL, _ANSWER = "label", "answer"
_KNOWN_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # when Evidently, litestar and urllib3 are imported
    (DeprecationWarning, r"numpy\.core is deprecated"),
    (DeprecationWarning, r"invalid escape sequence"),
    (DeprecationWarning, r"(Call to|Use of) deprecated (function|class) 'Dependency"),
    (Warning, r"SOCKS support in urllib3"),
    # columns without a single value, and classes that a version never answers: the page shows both as 0
    (RuntimeWarning, r"invalid value encountered in scalar divide"),
    (UserWarning, r"(Precision|Recall|F-score) is ill-defined"),
    # Evidently's dummy model of a part with one row
    (UserWarning, r"R\^2 score is not well-defined"),
)


def evaluation_page(policy: Evaluation, rows: Frame, scores: Scores) -> str:
    """HTML of one file. At most 20,000 rows are drawn, the same ones for the same data."""
    count = len(scores.labels)
    chosen = np.arange(count)
    if count > _ROWS_MAX:
        chosen = np.sort(generator(scores.digest, "page").choice(count, size=_ROWS_MAX, replace=False))
    with _evidently() as it:
        definition, presets = _definition(it, policy, rows, scores)
        current = it.Dataset.from_pandas(_frame(rows, scores, scores.candidate, chosen), definition)
        reference = None
        if scores.champion is not None:
            reference = it.Dataset.from_pandas(_frame(rows, scores, scores.champion, chosen), definition)
        return str(it.Report(presets).run(current, reference).get_html_str(as_iframe=False))


def _frame(rows: Frame, scores: Scores, predictions: Predictions, chosen: Any) -> Frame:
    """The rows with label and answer; classes as text, for Evidently compares them as such."""
    made = rows.iloc[chosen].reset_index(drop=True).copy()
    part = predictions.take(chosen)
    labels = scores.labels[chosen]
    if part.values is not None:
        return made.assign(**{_LABEL: labels, _ANSWER: part.values})
    said = chosen_classes(part, np.unique(scores.labels))
    return made.assign(
        **{_LABEL: [str(one) for one in labels.tolist()], _ANSWER: [str(one) for one in said.tolist()]}
    )


def _definition(it: Any, policy: Evaluation, rows: Frame, scores: Scores) -> tuple[Any, list[Any]]:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    numeric = [
        name for name in rows.columns if is_numeric_dtype(rows[name]) and not is_bool_dtype(rows[name])
    ]
    options: dict[str, Any] = {
        "numerical_columns": numeric,
        "categorical_columns": [name for name in rows.columns if name not in numeric],
    }
    presets = [it.DataSummaryPreset()]
    if policy.task == "regression":
        options["regression"] = [it.Regression(target=_LABEL, prediction=_ANSWER)]
        presets.insert(0, it.RegressionPreset())
    elif policy.task == "classification":
        classes = np.unique(scores.labels)
        if classes.size == 2:
            task = it.BinaryClassification(
                target=_LABEL, prediction_labels=_ANSWER, pos_label=str(classes.tolist()[1])
            )
        else:
            task = it.MulticlassClassification(target=_LABEL, prediction_labels=_ANSWER)
        options["classification"] = [task]
        presets.insert(0, it.ClassificationPreset())
    return it.DataDefinition(**options), presets


@contextmanager
def _evidently() -> Generator[Any]:
    """Evidently's names, imported at the first use (6 s), without warnings that say nothing."""
    with warnings.catch_warnings():
        for category, message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        import evidently
        from evidently import presets

        yield types.SimpleNamespace(
            BinaryClassification=evidently.BinaryClassification,
            ClassificationPreset=presets.ClassificationPreset,
            DataDefinition=evidently.DataDefinition,
            DataSummaryPreset=presets.DataSummaryPreset,
            Dataset=evidently.Dataset,
            MulticlassClassification=evidently.MulticlassClassification,
            Regression=evidently.Regression,
            RegressionPreset=presets.RegressionPreset,
            Report=evidently.Report,
        )
