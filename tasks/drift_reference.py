"""What a window is compared with: training data, the same season, or a file; bounded like the window."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.drift import Drift
from evals.drift_measures import PREDICTION, is_output
from serving.capture.reader import count_captures
from serving.capture.tables import sample_table
from serving.errors import ServingError, SetupError
from serving.table_files import sample_file
from serving.versions import model_uri
from tasks.bench import Bench

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger("interlock.drift")
_BATCH_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Reference:
    """Rows to compare with. `name` tells one reference from another: only windows against the same count."""

    name: str
    frame: pd.DataFrame
    note: str = ""


def load_reference(
    bench: Bench, policy: Drift, version: str, *, since: float, until: float, seed: int
) -> Reference:
    """The reference of a window of the version's captures, with the version's answers where it can be.

    Raises `SetupError` where the policy names one that is not there.
    """
    kind = policy.reference.kind
    if kind == "season":
        found = _season(bench, policy, version, since=since, until=until, seed=seed)
    elif kind == "file":
        found = _file(bench, policy, seed)
    else:
        found = _training(bench, policy, version, seed)
    label = getattr(bench.policy.evaluation, "label", PREDICTION)  # answers in words have none
    frame = found.frame.drop(columns=[label], errors="ignore") if label != PREDICTION else found.frame
    named = policy.reference.prediction
    if kind != "season" and named in frame.columns and named != PREDICTION:
        frame = frame.rename(columns={named: PREDICTION})
    note = found.note
    if len(frame) and not any(is_output(str(name)) for name in frame.columns):
        frame, note = _scored(bench, version, frame)
    hidden = [*bench.policy.capture.drop, *bench.policy.capture.hash]
    return Reference(found.name, frame.drop(columns=hidden, errors="ignore"), note)


def _training(bench: Bench, policy: Drift, version: str, seed: int) -> Reference:
    """The data that the version's own run logged, kept in the cache: a version never changes."""
    run_id = bench.registry.version(bench.policy.model, version).run_id
    name = f"training data of v{version}"
    wanted = f"{policy.reference.artifact} {policy.sample_rows} {seed}"
    digest = hashlib.sha256(f"{run_id} {wanted}".encode()).hexdigest()[:16]
    folder = bench.settings.state / "cache" / "references"
    cached = folder / f"{bench.policy.model}-v{version}-{digest}.parquet"
    if not cached.exists():
        with tempfile.TemporaryDirectory(prefix="interlock-reference-") as fetched:
            path = _fetch(bench, policy, run_id, Path(fetched))
            if path is None:
                raise SetupError(
                    f"{bench.name}: version {version} has no training data to compare with: its MLflow run "
                    f"{run_id or '(none)'} has neither the artifact {policy.reference.artifact} nor a data "
                    "set logged as 'training'. Next: log one of them when training, or choose "
                    "drift.reference.kind"
                )
            frame = sample_file(path, rows=policy.sample_rows, seed=seed)
        cached.parent.mkdir(parents=True, exist_ok=True)
        part = cached.with_suffix(".part")
        frame.to_parquet(part, index=False)
        part.replace(cached)
    return Reference(name, sample_file(cached, rows=policy.sample_rows, seed=seed))


def _fetch(bench: Bench, policy: Drift, run_id: str, folder: Path) -> Path | None:
    if not run_id:
        return None
    found = bench.runs.fetch(run_id, policy.reference.artifact, folder)
    return found or bench.runs.fetch_dataset(run_id, "training", folder)


def _file(bench: Bench, policy: Drift, seed: int) -> Reference:
    assert policy.reference.path is not None  # the policy's own check
    path = bench.settings.policy_path(bench.name).parent / policy.reference.path
    if not path.exists():
        raise SetupError(
            f"{bench.name}: drift.reference.path {path} does not exist. Next: correct the path in the policy"
        )
    stat = path.stat()
    name = f"file {path.name} of {stat.st_size} bytes, {stat.st_mtime_ns}"
    return Reference(name, sample_file(path, rows=policy.sample_rows, seed=seed))


def _season(bench: Bench, policy: Drift, version: str, *, since: float, until: float, seed: int) -> Reference:
    """The window as it was one season ago; answers of other versions are not comparable, so they go."""
    folder, ago = bench.settings.captures_dir / bench.name, policy.reference.season_s
    counts = count_captures(folder, since=since - ago, until=until - ago)
    table = sample_table(folder, since=since - ago, until=until - ago, requests=policy.sample_rows, seed=seed)
    frame = table.frame
    if set(counts["version"]) - {version}:
        frame = frame.drop(columns=[name for name in frame.columns if is_output(str(name))])
    return Reference(f"season {ago:g} s ago", frame)


def _scored(bench: Bench, version: str, frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows with the version's own answers: what it says of the reference is what it should say."""
    import pandas as pd

    try:
        model = bench.runs.load_model(model_uri(bench.policy.model, version))
        parts = [
            _answers(model.predict(frame.iloc[start : start + _BATCH_ROWS]))
            for start in range(0, len(frame), _BATCH_ROWS)
        ]
    except ServingError as error:
        return frame, f"answers are not compared: {error}"
    except Exception as error:  # noqa: BLE001 (whatever a model raises: its inputs can still be compared)
        _LOG.warning("version %s could not score the reference", version, exc_info=True)
        said = f"{error.__class__.__name__}: {str(error)[:200]}"
        return frame, f"answers are not compared: version {version} could not score the reference ({said})"
    return pd.concat([frame.reset_index(drop=True), pd.concat(parts, ignore_index=True)], axis=1), ""


def _answers(raw: Any) -> pd.DataFrame:
    """A model's answer in the columns in which its captures have it (MLflow's orientation: records)."""
    import numpy as np
    import pandas as pd

    if isinstance(raw, pd.Series):
        raw = raw.to_frame()
    if isinstance(raw, pd.DataFrame):
        return raw.rename(columns=lambda name: f"{PREDICTION}.{name}").reset_index(drop=True)
    values = np.asarray(raw)
    if values.ndim == 1:
        return pd.DataFrame({PREDICTION: values})
    return pd.DataFrame(values, columns=[f"{PREDICTION}.{part}" for part in range(values.shape[1])])
