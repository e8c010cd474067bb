"""The five versions of the demo: what each is, trained in seconds, registered in MLflow.

| role        | is                                             | meant to end              |
| ----------- | ---------------------------------------------- | ------------------------- |
| `baseline`  | logistic regression on the timetable alone     | first champion            |
| `congested` | + weather and how the origin did today         | promoted                  |
| `timetable` | + a strict lookup in the spring timetable      | rejected at shadow        |
| `neighbours`| + similar flights, in scratch memory for one   | rejected at canary        |
| `hasty`     | fitted on one quiet fortnight, timetable alone | rejected at evaluation    |

None of the faults is staged: the code is in `scoring.py`, and the flights themselves bring them
out. All take the same columns and answer with one probability a row, so that clients notice a
release only by its quality.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.flights.data import COUNTS, FEATURES, LABEL, MEASURES, TEXTS, FlightFiles

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("baseline", "congested", "timetable", "neighbours", "hasty")
"""In the order in which the demo releases them."""

EXPERIMENT = "flights/training"
ROLE_TAG = "role"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "scikit-learn", "skops")

_BINNED = ("recent_delay", "overdue", "precip", "visib", "wind_speed", "pressure", "temp", "arr_minute")
_NEARBY = ("recent_delay", "overdue", "dep_minute", "arr_minute", "distance", "wind_speed", "visib", "precip")
_REFERENCE_ROWS = 28_000
_BANDWIDTH = 1.0
_BLEND = 0.25
_SLOT_PRIOR_FLIGHTS = 60
_HASTY_ROWS = 9_000


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained version before it is logged: a recipe, an estimator, and arrays if it has any."""

    role: str
    recipe: dict[str, Any]
    estimator: Any
    arrays: dict[str, Any] = field(default_factory=dict)


def train(role: str, files: FlightFiles) -> Fitted:
    """Fit one role on the training days. Raises ValueError for a role that does not exist."""
    import pandas as pd

    if role not in ROLES:
        raise ValueError(f"No flight model is called {role!r}. Known: {', '.join(ROLES)}")
    rows = pd.read_parquet(files.train)
    if role == "baseline":
        return _linear(role, rows, _encoder(rows, conditions=False))
    if role == "congested":
        return _linear(role, rows, _encoder(rows, conditions=True))
    if role == "timetable":
        return _with_timetable(rows, pd.read_parquet(files.held_out))
    if role == "neighbours":
        return _with_neighbours(rows)
    return _linear(role, rows.head(_HASTY_ROWS), _encoder(rows, conditions=False))


def register(fitted: Fitted, model: str, *, example: pd.DataFrame, run_name: str | None = None) -> str:
    """Log a version in a run of its own, register it under `model`, and return its number.

    Uses the tracking server that MLflow is set to. `example` are a few rows of features.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = [ColSpec("string", name) for name in TEXTS]
    inputs += [ColSpec("long", name) for name in COUNTS]
    inputs += [ColSpec("double", name, required=False) for name in MEASURES]
    from examples.flights import scoring

    mlflow.set_experiment(EXPERIMENT)
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_name=run_name or fitted.role) as run:
        mlflow.log_params({"role": fitted.role, "features": len(FEATURES), "label": LABEL})
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=scoring.__file__,
            artifacts=_write(fitted, Path(folder)),
            signature=ModelSignature(Schema(inputs), Schema([ColSpec("double")])),
            input_example=example[list(FEATURES)].head(2),
            pip_requirements=[f"{name}=={installed_version(name)}" for name in REQUIREMENTS],
        )
        registered = mlflow.register_model(
            info.model_uri, model, tags={ROLE_TAG: fitted.role, "run": run.info.run_id}
        )
    return str(registered.version)


def train_and_register(
    files: FlightFiles,
    model: str,
    *,
    roles: Iterable[str] = ROLES,
    told: Callable[[str, str], None] = lambda role, version: None,
) -> dict[str, str]:
    """Train and register fresh copies of `roles`; returns role to version, in order."""
    import pandas as pd

    example = pd.read_parquet(files.held_out).head(2)
    versions: dict[str, str] = {}
    for role in roles:
        versions[role] = register(train(role, files), model, example=example)
        told(role, versions[role])
    return versions


def _linear(role: str, rows: pd.DataFrame, encoder: dict[str, Any], **recipe: Any) -> Fitted:
    from examples.flights.scoring import Encoder

    return Fitted(role, {"encoder": encoder, **recipe}, _fit(Encoder(encoder)(rows), rows[LABEL]))


def _fit(encoded: Any, late: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.05, max_iter=200, tol=1e-3).fit(encoded, late)


def _encoder(rows: pd.DataFrame, *, conditions: bool) -> dict[str, Any]:
    """The recipe of an `Encoder`: the timetable, and with `conditions` the day's weather and delays."""
    import numpy as np

    one_hot: dict[str, list[Any]] = {column: sorted(rows[column].unique().tolist()) for column in TEXTS}
    one_hot |= {"day_of_week": list(range(7)), "dep_hour": list(range(24))}
    binned: dict[str, list[float]] = {}
    if conditions:
        inner = np.linspace(0, 1, 13)[1:-1]
        binned = {column: np.unique(rows[column].quantile(inner)).tolist() for column in _BINNED}
    return {
        "one_hot": one_hot,
        "binned": binned,
        "scaled": _scales(rows, (*COUNTS, *MEASURES)) if conditions else {},
    }


def _scales(rows: pd.DataFrame, columns: Iterable[str]) -> dict[str, tuple[float, float]]:
    return {column: (float(rows[column].mean()), float(rows[column].std())) for column in columns}


def _with_timetable(rows: pd.DataFrame, held_out: pd.DataFrame) -> Fitted:
    """Adds each slot's usual lateness; knows the spring timetable, to the end of May, and no other.

    The held-out rows lend their slots (a published timetable), never their labels.
    """
    import numpy as np
    import pandas as pd

    from examples.flights.scoring import Encoder, Timetable, slot_keys

    slots, late = pd.Series(slot_keys(rows)), rows[LABEL]
    usual = float(late.mean())

    def log_odds(part: Any) -> pd.Series[Any]:
        sums = late[part].groupby(slots[part]).agg(["sum", "count"])
        rate = (sums["sum"] + _SLOT_PRIOR_FLIGHTS * usual) / (sums["count"] + _SLOT_PRIOR_FLIGHTS)
        return np.log(rate / (1 - rate))

    # A slot's lateness is learnt from the other half of the days, or it would contain the answer.
    half = np.arange(len(rows)) // 5_000 % 2 == 0
    prior = float(np.log(usual / (1 - usual)))
    known = np.where(half, slots.map(log_odds(~half)), slots.map(log_odds(half)))
    encoder = _encoder(rows, conditions=True)
    encoded = np.hstack([Encoder(encoder)(rows), np.nan_to_num(known, nan=prior)[:, None]])

    spring = dict.fromkeys(slot_keys(held_out), prior) | log_odds(slice(None)).to_dict()
    assert Timetable(spring)(held_out).shape == (len(held_out), 1)
    return Fitted("timetable", {"encoder": encoder, "timetable": spring}, _fit(encoded, late))


def _with_neighbours(rows: pd.DataFrame) -> Fitted:
    from examples.flights.scoring import Encoder

    fitted = _linear("neighbours", rows, _encoder(rows, conditions=True))
    reference = rows.sample(_REFERENCE_ROWS, random_state=20)
    nearby = {"one_hot": {}, "binned": {}, "scaled": _scales(rows, _NEARBY)}
    recipe = fitted.recipe | {"nearby": nearby, "bandwidth": _BANDWIDTH, "blend": _BLEND}
    arrays = {
        "points": Encoder(nearby)(reference).astype("float32"),
        "late": reference[LABEL].to_numpy("float32"),
    }
    return Fitted("neighbours", recipe, fitted.estimator, arrays)


def _write(fitted: Fitted, folder: Path) -> dict[str, str]:
    """The artifacts of a version as files: artifact name to path."""
    import numpy as np
    import skops.io

    recipe, estimator = folder / "recipe.json", folder / "estimator.skops"
    recipe.write_text(json.dumps(fitted.recipe))
    skops.io.dump(fitted.estimator, estimator)
    files = {"recipe": str(recipe), "estimator": str(estimator)}
    if fitted.arrays:
        files["reference"] = str(folder / "reference.npz")
        np.savez(files["reference"], **fitted.arrays)
    return files
