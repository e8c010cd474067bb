"""The offline gate's hands: reads the held-out rows, scores both versions, asks `evals.gate`."""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.generation import Generation
from configs.policy import Evaluation
from evals.gate import Scores
from evals.gate import evaluate as decide
from evals.metrics import MORE_IS_BETTER, CustomMetric, MetricError, Predictions
from evals.verdict import Outcome, Verdict
from serving.errors import SetupError
from tasks.bench import Bench
from tasks.generation import evaluate_answers
from tasks.release import Release
from tasks.signatures import note_signature

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_LOG = logging.getLogger("interlock.evaluation")
_BATCH_ROWS = 10_000
_TIMED_CALLS = 60
_WARM_UP_CALLS = 10


class _ModelFault(Exception):
    """The version itself could not answer the held-out rows."""


def evaluate_candidate(release: Release) -> Verdict:
    """Score candidate and champion on the same held-out rows and decide.

    A candidate that raises on them, or answers what is no number, FAILs. Data that cannot be
    read raises `SetupError`: that is nobody's fault but the set-up's.
    """
    bench, policy = release.bench, release.bench.policy.evaluation
    if isinstance(policy, Generation):
        return evaluate_answers(release, policy)
    rows = read_rows(bench, policy)
    labels = rows.pop(policy.label).to_numpy()
    digest = digest_of(rows, labels)
    _LOG.info("%s: %d held-out rows, digest %s", release.row.id, len(rows), digest[:12])
    release.progress({"rows": len(rows), "doing": f"scoring version {release.version}"})
    candidate_uri = bench.registry.version(bench.policy.model, release.version).uri
    try:
        model = bench.runs.load_model(candidate_uri)
        note_signature(bench, release.row.id, release.version, model)
        candidate, latencies = _scores(release, model, rows), _call_ms(model, rows)
    except _ModelFault as fault:
        return Verdict(Outcome.FAIL, f"version {release.version} {fault}")
    champion = None if release.first else _champion_scores(release, rows, digest)
    try:
        scores = Scores(
            labels=labels,
            candidate=Predictions.read(candidate, labels, policy.task),
            champion=None if champion is None else Predictions.read(champion, labels, policy.task),
            rows=rows,
            candidate_ms=latencies,
            digest=digest,
            functions=custom_metrics(policy),
        )
    except MetricError as error:
        return Verdict(Outcome.ERROR, str(error))
    verdict = decide(policy, scores)
    now = bench.clock()
    for finding in verdict.findings:
        values = {"candidate": finding.candidate, "champion": finding.champion}
        numbers = {
            f"evaluate/{finding.metric}/{who}".replace("=", "_"): value
            for who, value in values.items()
            if value is not None
        }
        release.trail.numbers(numbers, now=now, step=0)
    return verdict


def read_rows(bench: Bench, policy: Evaluation) -> pd.DataFrame:
    """The held-out rows with their labels, sampled down to `max_rows` (always the same ones).

    A relative path is meant from the policy's folder.
    """
    import pandas as pd

    location = policy.data
    if "://" not in location:
        path = Path(location).expanduser()
        location = str(path if path.is_absolute() else bench.settings.policy_path(bench.name).parent / path)
    read = (
        pd.read_csv if location.split("?")[0].endswith((".csv", ".csv.gz", ".csv.zip")) else pd.read_parquet
    )
    try:
        rows = read(location)
    except (OSError, ValueError, ImportError) as error:
        raise SetupError(
            f"{bench.name}: evaluation.data {location} could not be read "
            f"({error.__class__.__name__}: {str(error)[:200]}). Next: correct the path in the policy"
        ) from error
    if policy.label not in rows.columns:
        raise SetupError(
            f"{bench.name}: evaluation.data {location} has no column {policy.label!r}; it has "
            f"{', '.join(map(str, rows.columns[:20]))}. Next: correct evaluation.label in the policy"
        )
    if len(rows) > policy.max_rows:
        rows = rows.sample(policy.max_rows, random_state=0)
    return rows.reset_index(drop=True)


def digest_of(rows: pd.DataFrame, labels: NDArray[Any]) -> str:
    """SHA-256 over the values of rows and labels: the key under which scores are cached."""
    import pandas as pd

    digest = hashlib.sha256()
    digest.update(",".join(map(str, rows.columns)).encode())
    digest.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    digest.update(pd.util.hash_array(labels).tobytes())
    return digest.hexdigest()


def custom_metrics(policy: Evaluation) -> dict[str, CustomMetric]:
    """The policy's metrics that are dotted callables, imported. Raises `SetupError`."""
    found: dict[str, CustomMetric] = {}
    for metric in policy.metrics:
        if metric.name in MORE_IS_BETTER:
            continue
        module, _, attribute = metric.name.rpartition(".")
        try:
            found[metric.name] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise SetupError(
                f"evaluation.metrics: {metric.name!r} is neither built in nor a callable "
                f"that can be imported ({error}). Built in: {', '.join(MORE_IS_BETTER)}. "
                "Next: correct the name in the policy"
            ) from error
    return found


def _champion_scores(release: Release, rows: pd.DataFrame, digest: str) -> NDArray[Any]:
    """The champion's predictions, from the cache where the same rows were scored before."""
    bench, champion = release.bench, release.row.champion
    run_id = bench.registry.version(bench.policy.model, champion).run_id
    key = f"{bench.policy.model}-v{champion}-{run_id[:12]}-{digest[:16]}.npy"
    cached = bench.settings.state / "cache" / "scores" / key
    if cached.exists():
        return np.load(cached, allow_pickle=False)
    release.progress({"rows": len(rows), "doing": f"scoring champion {champion}"})
    model = bench.runs.load_model(f"models:/{bench.policy.model}/{champion}")
    try:
        scores = _scores(release, model, rows)
    except _ModelFault as fault:
        raise SetupError(
            f"{bench.name}: the champion, version {champion}, {fault}, so there is nothing to compare with. "
            "Next: check evaluation.data against the champion's signature"
        ) from fault
    if scores.dtype.kind != "O":
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(f".{time.monotonic_ns()}.part.npy")
        np.save(part, scores)
        part.replace(cached)
    return scores


def _scores(release: Release, model: Any, rows: pd.DataFrame) -> NDArray[Any]:
    parts: list[NDArray[Any]] = []
    for start in range(0, len(rows), _BATCH_ROWS):
        release.check()
        parts.append(_predict(model, rows.iloc[start : start + _BATCH_ROWS]))
    scores = np.concatenate(parts) if parts else np.zeros(0)
    if scores.dtype.kind == "f" and not np.isfinite(scores).all():
        raise _ModelFault(
            f"answered {np.count_nonzero(~np.isfinite(scores))} of {len(scores)} rows without a number"
        )
    return scores


def _call_ms(model: Any, rows: pd.DataFrame) -> NDArray[np.float64]:
    """Milliseconds of single-row calls, after a warm-up."""
    taken: list[float] = []
    for index in range(min(_WARM_UP_CALLS + _TIMED_CALLS, len(rows))):
        row = rows.iloc[index : index + 1]
        begun = time.perf_counter()
        _predict(model, row)
        taken.append((time.perf_counter() - begun) * 1000)
    return np.asarray(taken[_WARM_UP_CALLS:])


def _predict(model: Any, rows: pd.DataFrame) -> NDArray[Any]:
    """The model's answer, one entry a row."""
    try:
        answer = model.predict(rows)
    except Exception as error:  # whatever a model raises is the model's fault
        raise _ModelFault(
            f"raised {error.__class__.__name__} on held-out rows: {str(error)[:200]}"
        ) from error
    values = np.asarray(answer)
    if values.ndim not in (1, 2) or len(values) != len(rows):
        raise _ModelFault(f"answered shape {values.shape} to {len(rows)} rows")
    return values
