"""MLflow's evaluators on the answers that were given already: a second computation, kept with the run.

They log their metrics, curves and tables to the release's MLflow run. Every metric that was asked
of them must come back, and where both compute the same one they must agree: MLflow's evaluators
warn about what they could not compute and go on, and a number that is missing proves nothing.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from configs.evaluation import Evaluation
from evals.contest import Contest, Scores
from evals.metrics import MetricError, Predictions, chosen_classes
from evals.verdict import Finding, Outcome
from tasks.runs import Runs

_LOG = logging.getLogger("interlock.evaluators")
_TOLERANCE = 1e-6
_MODEL_TYPES = {"classification": "classifier", "regression": "regressor"}
_THEIR_NAMES = {
    "accuracy": "accuracy_score",
    "f1": "f1_score",
    "mae": "mean_absolute_error",
    "rmse": "root_mean_squared_error",
    "mape": "mean_absolute_percentage_error",
}
"""Ours to theirs: what MLflow computes by itself. Everything else of the policy is handed to it."""


def run_evaluators(runs: Runs, run_id: str, policy: Evaluation, scores: Scores) -> list[Finding]:
    """Evaluate both versions with MLflow and compare with ours: ERROR for what is missing or differs."""
    findings: list[Finding] = []
    for who, predictions in (("candidate", scores.candidate), ("champion", scores.champion)):
        if predictions is None:
            continue
        ours = _values(policy, scores, predictions)
        asked = {name: f"{who}_{name}".replace("@", "_at_").replace(".", "_") for name in ours}
        try:
            found = _evaluate(runs, run_id, policy, scores, predictions, who, asked)
        except Exception as error:  # noqa: BLE001 (whatever an evaluator raises: its metrics are missing)
            said = f"{error.__class__.__name__}: {' '.join(str(error).split())[:200]}"
            reason = (
                f"MLflow's evaluator raised on the {who}'s answers ({said}). Next: see the flow run's log"
            )
            _LOG.warning("the evaluator raised", exc_info=True)
            findings.append(Finding(f"evaluator ({who})", Outcome.ERROR, reason))
            continue
        theirs = _their_names(np.unique(scores.labels).size)
        named = {name: f"{who}_{theirs[name]}" if name in theirs else asked[name] for name in ours}
        findings.append(
            _judge(who, ours, {name: found.get(named[name]) for name in ours}, len(scores.labels))
        )
    return findings


def _their_names(classes: int) -> dict[str, str]:
    """MLflow weighs the F1 of many classes by their sizes, which is not the policy's metric."""
    return {name: theirs for name, theirs in _THEIR_NAMES.items() if name != "f1" or classes == 2}


def _judge(who: str, ours: Mapping[str, float], theirs: Mapping[str, float | None], rows: int) -> Finding:
    metric = f"evaluator ({who})"
    missing = [name for name, value in theirs.items() if value is None or not np.isfinite(value)]
    if missing:
        reason = (
            f"MLflow's evaluator gave no {', '.join(missing)} for the {who}. Next: see the flow run's log"
        )
        return Finding(metric, Outcome.ERROR, reason)
    for name, value in theirs.items():
        assert value is not None  # else it were missing
        if abs(value - ours[name]) > _TOLERANCE * max(1.0, abs(ours[name])):
            reason = f"MLflow's evaluator has {name} {value:.6g} for the {who}, we have {ours[name]:.6g}. "
            return Finding(metric, Outcome.ERROR, reason + "Next: check labels and answers for mixed types")
    reason = f"MLflow's evaluator agrees on {', '.join(ours)} of the {who}"
    return Finding(metric, Outcome.PASS, reason, units=rows, blocks=False)


def _values(policy: Evaluation, scores: Scores, predictions: Predictions) -> dict[str, float]:
    """The policy's metrics by name; those that are undefined have a finding of their own already."""
    values: dict[str, float] = {}
    for metric in policy.metrics:
        try:
            values[metric.name] = Contest(metric.name, scores).value(predictions)
        except MetricError:
            continue
    return values


def _evaluate(
    runs: Runs,
    run_id: str,
    policy: Evaluation,
    scores: Scores,
    predictions: Predictions,
    who: str,
    asked: Mapping[str, str],
) -> dict[str, float]:
    import pandas as pd
    from mlflow.models import make_metric

    classes = np.unique(scores.labels)
    said = predictions.values if predictions.values is not None else chosen_classes(predictions, classes)
    frame = pd.DataFrame({"label": scores.labels, "prediction": said})

    def of(name: str) -> Callable[..., float]:
        def value(predictions: Any, targets: Any, metrics: Any) -> float:
            return Contest(name, scores).value(ours)

        ours = predictions
        return value

    extra = [
        make_metric(eval_fn=of(name), greater_is_better=True, name=asked[name].removeprefix(f"{who}_"))
        for name in asked
        if name not in _their_names(classes.size)
    ]
    config: dict[str, Any] = {"log_model_explainability": False, "metric_prefix": f"{who}_"}
    if policy.task == "classification" and classes.size == 2:
        config["pos_label"] = classes.tolist()[1]
    # its notes are about what is checked here: which metrics came back, and whether they are ours
    logging.getLogger("mlflow.models.evaluation").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runs.evaluate(
            run_id, frame, model_type=_MODEL_TYPES.get(policy.task), extra_metrics=extra, config=config
        )
