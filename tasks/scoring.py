"""What versions answer to the held-out rows, in batches, and how long single calls take.

The champion's answers are kept under its version, its run and the rows' digest: a version never
changes, so the same rows are scored by it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.evaluation import Evaluation
from evals.budgets import calls_wanted, champion_is_timed
from serving.errors import SetupError
from serving.versions import model_uri
from tasks.bench import Bench
from tasks.held_out import HeldOut, policy_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_BATCH_ROWS = 10_000
_WARM_UP_CALLS = 10
_TIMING_S_MAX = 60.0

Tell = Callable[[int], object]
"""Hears how many rows were scored; raises where the work must stop."""


class ModelFault(Exception):
    """The version itself could not answer the held-out rows."""


def candidate_answers(
    policy: Evaluation, model: Any, held_out: HeldOut, tell: Tell
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The candidate's answers, shape (n,) or (n, k), and single calls' milliseconds. Raises `ModelFault`."""
    inputs = _inputs(policy, model, held_out.rows)
    answers = score(model, inputs, tell)
    return answers, call_ms(model, inputs, calls_wanted(policy))


def champion_answers(
    bench: Bench, version: str, held_out: HeldOut, tell: Tell
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The champion's answers, from the cache where the same rows were scored before, and its calls.

    Its calls are timed only where a decision depends on them.
    """
    policy = policy_of(bench)
    run_id = bench.registry.version(bench.policy.model, version).run_id
    key = f"{bench.policy.model}-v{version}-{run_id[:12]}-{held_out.digest[:16]}.npy"
    cached = bench.settings.state / "cache" / "scores" / key
    timed = champion_is_timed(policy)
    none = np.zeros(0)
    if cached.exists() and not timed:
        return np.load(cached, allow_pickle=False), none
    model = bench.runs.load_model(model_uri(bench.policy.model, version))
    inputs = _inputs(policy, model, held_out.rows)
    try:
        known = cached.exists()
        answers = np.load(cached, allow_pickle=False) if known else score(model, inputs, tell)
        taken = call_ms(model, inputs, calls_wanted(policy)) if timed else none
    except ModelFault as fault:
        raise SetupError(
            f"{bench.name}: the champion, version {version}, {fault}, so there is nothing to compare with. "
            "Next: check evaluation.data against the champion's signature"
        ) from fault
    if not known and answers.dtype.kind != "O":
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(f".{time.monotonic_ns()}.part.npy")
        np.save(part, answers)
        part.replace(cached)
    return answers, taken


def score(model: Any, inputs: pd.DataFrame, tell: Tell) -> NDArray[Any]:
    """A model's answers to all rows, batch by batch. Raises `ModelFault`."""
    parts: list[NDArray[Any]] = []
    for start in range(0, len(inputs), _BATCH_ROWS):
        parts.append(_predict(model, inputs.iloc[start : start + _BATCH_ROWS]))
        tell(min(start + _BATCH_ROWS, len(inputs)))
    answers = np.concatenate(parts) if parts else np.zeros(0)
    if answers.dtype.kind == "f" and not np.isfinite(answers).all():
        wrong = int(np.sum(~np.isfinite(answers).reshape(len(answers), -1).all(axis=1)))
        raise ModelFault(f"answered {wrong} of {len(answers)} rows without a number")
    return answers


def call_ms(model: Any, inputs: pd.DataFrame, calls: int) -> NDArray[np.float64]:
    """Milliseconds of at most so many single-row calls, after a warm-up; rows repeat where they are few."""
    if not calls or not len(inputs):
        return np.zeros(0)
    taken: list[float] = []
    until = time.perf_counter() + _TIMING_S_MAX
    for index in range(_WARM_UP_CALLS + calls):
        row = inputs.iloc[index % len(inputs) : index % len(inputs) + 1]
        begun = time.perf_counter()
        if begun > until:
            break
        _predict(model, row)
        taken.append((time.perf_counter() - begun) * 1000)
    return np.asarray(taken[_WARM_UP_CALLS:])


def _inputs(policy: Evaluation, model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as the model takes them: a signature picks its own columns, else only ours go."""
    schema = getattr(getattr(model, "metadata", None), "signature", None)
    named = schema.inputs.input_names() if schema is not None and schema.inputs is not None else []
    ours = [policy.group, policy.fresh.column if policy.fresh else None]
    return rows.drop(columns=[name for name in ours if name and name not in named], errors="ignore")


def _predict(model: Any, rows: pd.DataFrame) -> NDArray[Any]:
    """The model's answer, one entry a row."""
    try:
        answer = model.predict(rows)
    except Exception as error:  # whatever a model raises is the model's fault
        raise ModelFault(f"raised {error.__class__.__name__} on held-out rows: {str(error)[:200]}") from error
    values = np.asarray(answer)
    if values.ndim not in (1, 2) or len(values) != len(rows):
        raise ModelFault(f"answered shape {values.shape} to {len(rows)} rows")
    return values
