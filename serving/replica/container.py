"""`python -m serving.replica.container serve`: a replica in a container of a managed platform.

What the platform tells its containers by variables and paths becomes a `ReplicaSpec`; everything after
that is the same process as on the local platform. SageMaker wants `/ping` and `/invocations` on 8080 (or
`SAGEMAKER_BIND_TO_PORT`) and unpacks the model into /opt/ml/model; Vertex AI names port, routes
and the model's place in AIP_* variables. INTERLOCK_* variables come from the adapter.

Exit statuses are those of `python -m serving.replica`; 2 also for variables that are wrong.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAGEMAKER_MODEL_DIR = "/opt/ml/model"
DEFAULT_PORT = "8080"
_EVERYWHERE = "0.0.0.0"  # noqa: S104 (the platform's network is all that reaches a container)
_NUMBERS = {
    "INTERLOCK_CONCURRENCY": "concurrency",
    "INTERLOCK_THREADS": "threads",
    "INTERLOCK_BATCH_MAX_ROWS": "batch_max_rows",
    "INTERLOCK_MAX_BODY_BYTES": "max_body_bytes",
}


def spec_content(variables: Mapping[str, str], model_dir: Path, cache_dir: Path) -> dict[str, Any]:
    """The replica's spec from the platform's variables. Raises `ValueError` for a number that is none."""
    port = variables.get("AIP_HTTP_PORT") or variables.get("SAGEMAKER_BIND_TO_PORT") or DEFAULT_PORT
    aliases = {
        variables[name]: path
        for name, path in (("AIP_HEALTH_ROUTE", "/health"), ("AIP_PREDICT_ROUTE", "/invocations"))
        if variables.get(name)
    }
    version = variables.get("INTERLOCK_VERSION", "unknown")
    return {
        "endpoint": variables.get("INTERLOCK_ENDPOINT", "endpoint"),
        "slot": variables.get("INTERLOCK_SLOT", "blue"),
        "version": version,
        "uri": variables.get("INTERLOCK_URI") or f"models:/model/{version}",
        "name": variables.get("HOSTNAME", ""),
        "host": variables.get("INTERLOCK_HOST", _EVERYWHERE),
        "port": int(port),
        "request_timeout_s": float(variables.get("INTERLOCK_REQUEST_TIMEOUT_S", "60")),
        "mlflow_tracking_uri": "",
        "model_cache_dir": str(cache_dir),
        "model_dir": str(model_dir),
        "aliases": aliases,
        **{field: int(variables[name]) for name, field in _NUMBERS.items() if variables.get(name)},
    }


def model_folder(variables: Mapping[str, str], cache_dir: Path) -> Path:
    """Where the model's files are: told, downloaded from Vertex AI's copy, or SageMaker's place."""
    if told := variables.get("INTERLOCK_MODEL_DIR"):
        return Path(told)
    if uri := variables.get("AIP_STORAGE_URI"):
        return _download(uri, cache_dir / "model") if uri.startswith("gs://") else Path(uri)
    return Path(variables.get("SM_MODEL_DIR", SAGEMAKER_MODEL_DIR))


def _download(uri: str, folder: Path) -> Path:
    """Copy every object under a gs:// prefix."""
    from google.cloud import storage

    bucket, _, prefix = uri.removeprefix("gs://").partition("/")
    prefix = prefix.rstrip("/") + "/"
    for blob in storage.Client().list_blobs(bucket, prefix=prefix):
        name = str(blob.name).removeprefix(prefix)
        if name and not name.endswith("/"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(path))
    return folder


def main(arguments: list[str]) -> int:
    """Run until SIGTERM. `serve` is the word with which SageMaker starts a container."""
    if arguments not in ([], ["serve"]):
        print("Usage: python -m serving.replica.container [serve]", file=sys.stderr)
        return 2
    cache_dir = Path(tempfile.mkdtemp(prefix="interlock-"))
    try:
        folder = model_folder(os.environ, cache_dir)
        content = spec_content(os.environ, folder, cache_dir)
    except ValueError as error:
        print(f"A variable of this container is wrong: {error}", file=sys.stderr)
        return 2
    if not (folder / "MLmodel").is_file():
        print(
            f"{folder} holds no MLflow model: MLmodel is missing. Next: look at the artifact", file=sys.stderr
        )
        return 4
    path = cache_dir / "spec.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    from serving.replica.__main__ import main as run_replica

    return run_replica([str(path)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
