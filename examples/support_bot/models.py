"""The example's language models: made in vLLM's environment, registered from ours."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
VLLM_PYTHON = CHECKOUT / ".venv-vllm" / "bin" / "python"
"""Made by `make vllm-env`."""


def make_weights(folder: Path, seed: int, *, layers: int = 2, python: Path = VLLM_PYTHON) -> Path:
    """A tiny random Llama in `folder`, which is returned. Raises RuntimeError with what went wrong."""
    if not python.exists():
        raise RuntimeError(f"{python} does not exist. Next: make vllm-env")
    script = Path(__file__).with_name("weights.py")
    done = subprocess.run(
        [str(python), str(script), str(folder), str(seed), str(layers)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"making the weights failed: {done.stderr[-2000:]}")
    return folder


def train(
    folder: Path, steps: tuple[int, ...], *, extra_layers: int, python: Path = VLLM_PYTHON, threads: int = 1
) -> None:
    """Train the desk's models into `folder`, unless they are there. Raises RuntimeError with the reason."""
    if not python.exists():
        raise RuntimeError(f"{python} does not exist. Next: make vllm-env")
    if all((folder / name / "config.json").exists() for name in (*map(str, steps), "deep")):
        return
    done = subprocess.run(
        [
            *(str(python), "-m", "examples.support_bot.training", str(folder), *map(str, steps)),
            *("--deep", str(extra_layers), "--threads", str(threads)),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"training ended with status {done.returncode}: {done.stderr[-2000:]}")


def register_weights(tracking_uri: str, name: str, weights: Path) -> str:
    """Log a folder of weights as an artifact of a new registered version; returns its number."""
    return _register(tracking_uri, name, artifacts={"weights": str(weights)})


def register_api(tracking_uri: str, name: str, model: str) -> str:
    """Register a provider's model as a version: no weights, only its name there."""
    metadata = {"interlock": {"runtime": "api", "model": model}}
    return _register(tracking_uri, name, metadata=metadata)


def _register(tracking_uri: str, name: str, **logged: Any) -> str:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    mlflow.set_tracking_uri(tracking_uri)
    text = Schema([ColSpec(DataType.string, "prompt")])
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run():
        code = Path(folder) / "served_elsewhere.py"
        code.write_text(_CODE)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            pip_requirements=[],
            signature=ModelSignature(text, Schema([ColSpec(DataType.string)])),
            **logged,
        )
        return str(mlflow.register_model(info.model_uri, name).version)


_CODE = """\
import mlflow


class ServedElsewhere(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        raise NotImplementedError("this version is served by vLLM or by its provider")


mlflow.models.set_model(ServedElsewhere())
"""
