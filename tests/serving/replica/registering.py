"""Fills a registry of its own with the models that the tests serve. Run as a process:

    python -m tests.serving.replica.registering FOLDER [NAME ...]

writes `FOLDER/mlflow.db` and the artifacts, and prints the versions as one line of JSON. In a
process of its own, because what MLflow warns of while logging is not what these tests are about.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STRANGE = Path(__file__).with_name("strange_model.py")


def main(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Register the models of these names, or all; name to `models:/name/1`."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri(folder))
    mlflow.set_experiment(
        experiment_id=mlflow.create_experiment("tests", artifact_location=f"file://{folder}/art")
    )
    with mlflow.start_run():
        for name in names or MODELS:
            MODELS[name]()
    return {name: f"models:/{name}/1" for name in names or MODELS}


def tracking_uri(folder: Path) -> str:
    """The registry's address."""
    return f"sqlite:///{folder}/mlflow.db"


def log_strange() -> None:
    """Code of ours with params, and an optional column."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    inputs = [
        ColSpec("double", "x"),
        ColSpec("long", "n"),
        ColSpec("string", "mode"),
        ColSpec("double", "extra", required=False),
    ]
    mlflow.pyfunc.log_model(
        name="strange",
        python_model=str(STRANGE),
        signature=ModelSignature(Schema(inputs), params=ParamSchema([ParamSpec("plus", "double", 0.0)])),
        registered_model_name="strange",
        pip_requirements=[],
    )


def log_flights() -> None:
    """A scikit-learn pipeline on numbers and words, as most people log one."""
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = flights(400)
    encode = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["carrier"]), remainder=StandardScaler()
    )
    model = make_pipeline(encode, LogisticRegression()).fit(frame, frame["delay"] > 0)
    mlflow.sklearn.log_model(
        model,
        name="flights",
        signature=infer_signature(frame, model.predict_proba(frame)),
        input_example=frame.head(2),
        pyfunc_predict_fn="predict_proba",
        registered_model_name="flights",
        pip_requirements=[],
        skops_trusted_types=["numpy.dtype"],
    )


def flights(rows: int) -> Any:
    """Made-up flights, the same each time."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "delay": rng.normal(size=rows),
            "hour": rng.integers(0, 24, rows),
            "carrier": rng.choice(["AA", "UA", "DL"], rows),
            "distance": rng.uniform(100, 4000, rows),
        }
    )


def log_tensor() -> None:
    """A tensor signature: goes through MLflow's own parser."""
    import mlflow
    import numpy as np
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    inputs = np.arange(12.0).reshape(6, 2)
    mlflow.sklearn.log_model(
        LinearRegression().fit(inputs, inputs.sum(axis=1)),
        name="tensor",
        signature=infer_signature(inputs),
        registered_model_name="tensor",
        pip_requirements=[],
    )


def log_unsigned() -> None:
    """No signature and no example at all."""
    import mlflow
    import numpy as np
    from sklearn.linear_model import LinearRegression

    inputs = np.arange(12.0).reshape(6, 2)
    mlflow.sklearn.log_model(
        LinearRegression().fit(inputs, inputs.sum(axis=1)),
        name="unsigned",
        registered_model_name="unsigned",
        pip_requirements=[],
    )


def log_hinted() -> None:
    """A signature from type hints: MLflow checks it inside predict."""
    import mlflow

    code = STRANGE.with_name("hinted_model.py")
    mlflow.pyfunc.log_model(
        name="hinted", python_model=str(code), registered_model_name="hinted", pip_requirements=[]
    )


MODELS = {
    "strange": log_strange,
    "flights": log_flights,
    "tensor": log_tensor,
    "unsigned": log_unsigned,
    "hinted": log_hinted,
}

if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:])))
