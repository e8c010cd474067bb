"""From a registry URI to a warm model, with a local copy so that a restart needs no registry.

The copy is kept by model id, which never changes its content. Which id a version has is asked of
the registry each time, and read from a note of the last answer only while it cannot be reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

from serving.model_cache import fetch_once
from serving.replica.errors import LoadFailed, RegistryUnreachable
from serving.replica.model import ServedModel
from serving.replica.warmup import warm_up

logger = logging.getLogger("interlock.replica")

_VERSION_URI = re.compile(r"models:/([^/@]+)/(\d+)")
_MODEL_ID_URI = re.compile(r"models:/(m-[0-9a-f]+)")


def load_model(uri: str, *, tracking_uri: str, cache_dir: Path, model_dir: Path | None = None) -> ServedModel:
    """Fetch, load and warm up one version. Raises `LoadFailed`, or `RegistryUnreachable`.

    With `model_dir` the files are there already, and no registry is asked.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.pyfunc import load_model as load_pyfunc

    folder = model_dir or fetch_model(uri, tracking_uri=tracking_uri, cache_dir=cache_dir)
    try:
        served = ServedModel(load_pyfunc(str(folder)))
    except Exception as error:
        raise LoadFailed(
            f"Loading {uri} failed: {type(error).__name__}: {error}. Next: check that this environment has "
            f"the model's requirements ({folder / 'requirements.txt'})."
        ) from error
    warm_up(served, folder, uri)
    return served


def fetch_model(uri: str, *, tracking_uri: str, cache_dir: Path) -> Path:
    """The folder of a version's local copy, downloaded where it is not there yet."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)  # a download of `models:/` asks the registry beside this one
    key = _resolve(uri, tracking_uri=tracking_uri, cache_dir=cache_dir)

    def download(into: Path) -> str:
        from mlflow.artifacts import download_artifacts

        return download_artifacts(artifact_uri=uri, dst_path=str(into), tracking_uri=tracking_uri)

    try:
        return fetch_once(cache_dir, key, download)
    except Exception as error:
        raise RegistryUnreachable(
            f"Downloading {uri} from {tracking_uri} failed: {type(error).__name__}: {error}. "
            "Next: check that the artifact store can be reached."
        ) from error


def cached_keys(cache_dir: Path, uris: Collection[str]) -> set[str]:
    """The cache keys of versions, as far as any registry said them once. Asks none."""
    keys = {by_id[1] for uri in uris if (by_id := _MODEL_ID_URI.fullmatch(uri))}
    for note in cache_dir.glob(".*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(note.read_text())
            if told["uri"] in uris:
                keys.add(str(told["key"]))
    return keys


def _resolve(uri: str, *, tracking_uri: str, cache_dir: Path) -> str:
    """The cache key of a version: its model id, else a digest of its source."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    cache_dir.mkdir(parents=True, exist_ok=True)
    if by_id := _MODEL_ID_URI.fullmatch(uri):
        return by_id[1]
    by_version = _VERSION_URI.fullmatch(uri)
    if by_version is None:
        raise LoadFailed(f"Asked to serve {uri!r}. Next: name a version, models:/NAME/VERSION.")
    note = _note_path(cache_dir, tracking_uri, uri)
    try:
        version = MlflowClient(tracking_uri).get_model_version(by_version[1], by_version[2])
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise LoadFailed(
                f"Asked to serve {uri}; {tracking_uri} has no such version. {error.message}"
            ) from error
        key = _noted(note)
        if key is None or not (cache_dir / key).is_dir():
            raise RegistryUnreachable(
                f"Asked {tracking_uri} for {uri}: {error.message}. There is no local copy. "
                "Next: start MLflow."
            ) from error
        logger.warning("The registry does not answer; serving the local copy of %s", uri)
        return key
    source = hashlib.sha256(str(version.source).encode()).hexdigest()[:32]
    key = version.model_id or source
    _replace(note, json.dumps({"uri": uri, "key": key}))
    return key


def _note_path(cache_dir: Path, tracking_uri: str, uri: str) -> Path:
    """Where the registry's last answer is noted: by registry, since two may use the same names."""
    return cache_dir / f".{hashlib.sha256(f'{tracking_uri} {uri}'.encode()).hexdigest()[:24]}.json"


def _noted(note: Path) -> str | None:
    try:
        return str(json.loads(note.read_text())["key"])
    except (OSError, ValueError, KeyError):
        return None


def _replace(path: Path, text: str) -> None:
    staging = path.with_name(f"{path.name}.{os.getpid()}")
    staging.write_text(text)
    staging.replace(path)
