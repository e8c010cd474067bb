"""The drill's own versions: logged and registered by itself, so that no real model is ever touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.bench import Bench
from tasks.runs import prepare_environment

EXPERIMENT = "interlock/drill-versions"
FAULT_TAG = "interlock.drill"
CODE = Path(__file__).with_name("drill_model.py")


def register_version(bench: Bench, fault: str, switch: Path) -> str:
    """A fresh version with this fault ("" for a good one); its number. Takes some seconds."""
    prepare_environment(bench.settings.mlflow_url)
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    mlflow.set_tracking_uri(bench.settings.mlflow_url)
    mlflow.set_experiment(EXPERIMENT)
    signature = ModelSignature(
        Schema([ColSpec("double", "a"), ColSpec("double", "b")]), Schema([ColSpec("double")])
    )
    example: Any = pd.DataFrame({"a": [0.1], "b": [0.2]})
    with mlflow.start_run(run_name=fault or "good"):
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(CODE),
            model_config={"fault": fault, "switch": str(switch)},
            pip_requirements=[],
            signature=signature,
            input_example=example,
        )
    made = mlflow.register_model(info.model_uri, bench.policy.model, tags={FAULT_TAG: fault or "good"})
    return str(made.version)
