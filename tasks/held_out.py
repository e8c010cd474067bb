"""The held-out rows: read from wherever the policy says, sampled, without those that have no label.

Data that cannot be read, or lacks a column that the policy names, raises `SetupError`: that is
nobody's fault but the set-up's. What is in the labels is judged by `evals.labels`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.evaluation import Evaluation
from evals.labels import labelled
from serving.errors import Refused, ServingError, SetupError, TransientError
from serving.table_download import shown
from serving.table_scan import Scan, scan_table
from tasks.bench import Bench

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_SEED = 20_261_126
_DATASET = "mlflow-dataset:"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows with a label, and what is known of all rows of the source.

    `rows` (n inputs, without the label), `labels` and `numbers` (n,) in the source's order, which
    counts from 0. `all_labels` are those of the sample with the missing ones. `modified_at` is in
    seconds since the epoch, None where the source does not say. `digest` is over rows and labels.
    """

    source: str
    rows: pd.DataFrame
    labels: NDArray[Any]
    numbers: NDArray[np.int64]
    all_labels: NDArray[Any]
    total: int
    modified_at: float | None
    digest: str

    @property
    def sampled(self) -> bool:
        """Whether the source has more rows than the policy lets be scored."""
        return self.all_labels.size < self.total


def policy_of(bench: Bench) -> Evaluation:
    """The endpoint's gate on held-out rows. Raises `Refused` where its versions are judged by prompts."""
    policy = bench.policy.evaluation
    if not isinstance(policy, Evaluation):
        raise Refused(
            f"{bench.name}: its versions are judged by their answers to prompts, which only a placed version "
            f"gives. Next: interlock release {bench.name} VERSION"
        )
    return policy


def read_held_out(bench: Bench, tell: Callable[[int, int | None], object]) -> HeldOut:
    """The rows of the policy's `evaluation.data`, the same ones each time.

    `tell` hears how many rows were read, and of how many where that is known.
    """
    policy = policy_of(bench)
    scan = _scan(bench, policy, tell)
    frame: Any = scan.frame
    if len(frame) or len(frame.columns):
        _require_columns(bench, policy, frame)
        every = frame[policy.label].to_numpy()
    else:
        every = np.zeros(0)
    kept = labelled(every)
    if not kept.all():
        frame = frame[kept]
    rows = frame.drop(columns=[policy.label], errors="ignore").reset_index(drop=True)
    labels = np.asarray(frame[policy.label].infer_objects()) if every.size else every
    return HeldOut(
        source=shown(policy.data),
        rows=rows,
        labels=labels,
        numbers=scan.numbers[kept],
        all_labels=every,
        total=scan.total,
        modified_at=scan.modified_at,
        digest=digest_of(rows, labels),
    )


def digest_of(rows: pd.DataFrame, labels: NDArray[Any]) -> str:
    """SHA-256 over the values of rows and labels: the key under which scores are cached."""
    import pandas as pd

    digest = hashlib.sha256()
    digest.update(",".join(f"{name}:{rows[name].dtype}" for name in rows.columns).encode())
    for name in rows.columns:
        column = rows[name]
        plain: Any = column if column.dtype.kind in "fiubMm" else _texts(column)
        digest.update(_hashes(plain).tobytes())
    digest.update(row_hashes(pd.DataFrame({"label": labels})).tobytes())
    return digest.hexdigest()


def row_hashes(frame: pd.DataFrame) -> NDArray[np.uint64]:
    """A hash of each row, shape (n,): the same values have the same hash in any frame and any type.

    Whole numbers are compared exactly (1 is 1.0), broken ones in single precision, for training data
    may have been kept so; everything else as text. Missing values are alike.
    """
    import pandas as pd

    plain = {name: _plain(frame[name]) for name in frame.columns}
    return _hashes(pd.DataFrame(plain, index=frame.index))


def _hashes(values: Any) -> NDArray[np.uint64]:
    """A hash of each row of a table or column, shape (n,), without its index."""
    from pandas.util import hash_pandas_object

    hashed: Any = hash_pandas_object
    return np.ascontiguousarray(hashed(values, index=False), np.uint64)


def _plain(column: Any) -> Any:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        exact = column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0  # 0.0 and -0.0 have different bits
        with np.errstate(over="ignore"):
            single = exact.astype(np.float32).astype(np.float64)
        return np.where(exact % 1 == 0, exact, single)
    return _texts(column)


def _texts(column: Any) -> Any:
    texts = column.astype("object")
    return texts.where(texts.isna(), texts.map(str)).fillna("")


def _scan(bench: Bench, policy: Evaluation, tell: Callable[[int, int | None], object]) -> Scan:
    where = policy.data
    try:
        if where.startswith(_DATASET):
            return _mlflow_dataset(bench, where.removeprefix(_DATASET).lstrip("/"), policy.max_rows)
        if where.startswith("runs:/"):
            run_id, _, name = where.removeprefix("runs:/").partition("/")
            with tempfile.TemporaryDirectory(prefix="interlock-held-out-") as folder:
                address = bench.runs.dataset_location(run_id, name, Path(folder))
                return scan_table(address, rows=policy.max_rows, seed=_SEED, tell=tell)
        return scan_table(_location(bench, where), rows=policy.max_rows, seed=_SEED, tell=tell)
    except TransientError:
        raise
    except ServingError as error:
        raise SetupError(f"{bench.name}: evaluation.data: {error}") from error


def _location(bench: Bench, where: str) -> str:
    """A relative path is meant from the policy's folder."""
    if "://" in where:
        return where
    path = Path(where).expanduser()
    return str(path if path.is_absolute() else bench.settings.policy_path(bench.name).parent / path)


def _mlflow_dataset(bench: Bench, name: str, most: int) -> Scan:
    frame, changed_at = bench.runs.evaluation_dataset(name)
    total = len(frame)
    numbers = np.arange(total)
    if total > most:
        numbers = np.sort(np.random.default_rng(_SEED).choice(total, size=most, replace=False))
        frame = frame.iloc[numbers].reset_index(drop=True)
    return Scan(frame, numbers, total, changed_at)


def _require_columns(bench: Bench, policy: Evaluation, frame: pd.DataFrame) -> None:
    wanted = {"evaluation.label": policy.label}
    if policy.group is not None:
        wanted["evaluation.group"] = policy.group
    if policy.fresh is not None and policy.fresh.column is not None:
        wanted["evaluation.fresh.column"] = policy.fresh.column
    for key, name in wanted.items():
        if name not in frame.columns:
            raise SetupError(
                f"{bench.name}: evaluation.data {shown(policy.data)} has no column {name!r}; it has "
                f"{', '.join(map(str, frame.columns[:20]))}. Next: correct {key} in the policy"
            )
