"""Runs scorers through `mlflow.genai.evaluate`, so that every answer and score can be seen in MLflow.

MLflow only warns about a scorer that raises, leaves its metric out, and averages what is left where
it raised on some rows only (found by running it). So the numbers that decide are taken here, as each
scorer returns, and what it did not return stays absent: the gate counts that as an ERROR.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger("interlock.genai")
_WORKERS = "4"


@dataclass(frozen=True, slots=True)
class Example:
    """One answer as MLflow shows it; `key` tells rows apart."""

    key: str
    inputs: Mapping[str, Any]
    output: str
    expectations: Mapping[str, Any]


@dataclass(slots=True)
class Scores:
    """What the scorers returned, by metric and row key, and the first error of each metric."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def score_examples(
    client: MlflowClient,
    run_id: str,
    title: str,
    examples: Sequence[Example],
    scorers: Mapping[str, Callable[[str], float]],
) -> Scores:
    """Score every example in a child run of `run_id`. A scorer takes the row's key.

    Raises what MLflow raises where the run itself cannot be written.
    """
    import mlflow

    scores = Scores({name: {} for name in scorers})
    os.environ.setdefault("MLFLOW_GENAI_EVAL_MAX_WORKERS", _WORKERS)
    experiment = client.get_run(run_id).info.experiment_id
    child = client.create_run(experiment, run_name=title, tags={"mlflow.parentRunId": run_id})
    data = [
        {
            "inputs": {**one.inputs, "row": one.key},
            "outputs": one.output,
            "expectations": dict(one.expectations),
        }
        for one in examples
    ]
    mlflow.set_experiment(experiment_id=experiment)
    noise = io.StringIO()  # a progress bar and a farewell with colours: nothing for a flow's log
    with (
        mlflow.start_run(run_id=child.info.run_id),
        contextlib.redirect_stdout(noise),
        contextlib.redirect_stderr(noise),
    ):
        mlflow.genai.evaluate(data=data, scorers=[_wrapped(name, of, scores) for name, of in scorers.items()])
    for name, error in scores.errors.items():
        _LOG.warning("scorer %s: %s", name, error)
    return scores


def _wrapped(name: str, of: Callable[[str], float], scores: Scores) -> Any:
    from mlflow.genai.scorers import scorer

    lock = threading.Lock()

    @scorer(name=name)
    def score(inputs: dict[str, Any]) -> float:
        key = str(inputs["row"])
        try:
            value = float(of(key))
        except Exception as error:
            with lock:
                scores.errors.setdefault(name, f"{error.__class__.__name__}: {str(error)[:300]}")
            raise
        scores.values[name][key] = value
        return value

    return score
