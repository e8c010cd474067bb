"""From a registry version to a Vertex model: artifacts uploaded once, a container that serves them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from configs.policy import Policy
from configs.settings import Settings
from serving.errors import Refused, SetupError
from serving.llm.errors import NotServable
from serving.llm.source import Source, packed_source
from serving.replica.errors import LoadFailed, RegistryUnreachable
from serving.replica.loading import fetch_model
from serving.vertex.container import container
from serving.vertex.google_apis import GoogleApis, finished, patient, status_of, translated

_COMPLETE = ".interlock-complete"
"""Written after all files of a folder: an upload that died half-way is done again."""
_UPLOAD_TIMEOUT_S = 1800.0


def ensure_model(google: GoogleApis, policy: Policy, version: str, folder: Path) -> str:
    """The resource name of the Vertex model that serves a version, uploaded where it is not there yet.

    Its id is made of the registered model, the version and the content's key (the folder's name), so
    a repeated upload finds the first.
    """
    from google.api_core.exceptions import Conflict, NotFound
    from google.cloud.aiplatform_v1 import Model, UploadModelRequest

    here = policy.vertex
    assert here is not None
    identifier = model_id(policy.model, version, folder.name)
    name = f"{google.parent}/models/{identifier}"
    with translated(f"look for the model {identifier}"):
        try:
            return google.models.get_model(name=name, retry=patient()).name
        except NotFound:
            pass
    weights = _weights(policy, version, folder) if here.vllm is not None else None
    artifacts = upload_once(google, here.artifacts, folder)
    model = Model(
        display_name=f"{policy.model} version {version}"[:128],
        artifact_uri=artifacts,
        container_spec=container(here, policy, version=version, artifacts=artifacts, weights=weights),
        labels={"interlock-endpoint": policy.endpoint},
    )
    with translated(f"upload the model {identifier}"):
        try:
            operation = google.models.upload_model(
                UploadModelRequest(parent=google.parent, model_id=identifier, model=model), retry=patient()
            )
        except Conflict as error:
            if status_of(error) != "ALREADY_EXISTS":
                raise
            return name
    finished(operation, f"upload the model {identifier}", _UPLOAD_TIMEOUT_S)
    return name


def _weights(policy: Policy, version: str, folder: Path) -> Source:
    try:
        return packed_source(folder)
    except NotServable as error:
        raise Refused(f"{policy.endpoint}: version {version}: {error}") from error


def model_id(model: str, version: str, key: str) -> str:
    """Lower case letters, digits, `-` and `_`, beginning with a letter, at most 63: Vertex's rule."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", f"il-{model}-v{version}".lower())
    tail = re.sub(r"[^a-z0-9_-]+", "-", key.lower())[-16:]
    return f"{plain[:46]}-{tail}"


def upload_once(google: GoogleApis, prefix: str, folder: Path) -> str:
    """Copy a model's folder below the prefix, unless a complete copy is there. Returns its gs:// URI."""
    bucket_name, _, inner = prefix.removeprefix("gs://").partition("/")
    base = f"{inner}/{folder.name}"
    with translated(f"upload {folder.name} to {prefix}"):
        bucket = google.storage.bucket(bucket_name)
        if not bucket.blob(f"{base}/{_COMPLETE}").exists(retry=patient()):
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in files:
                blob = bucket.blob(f"{base}/{path.relative_to(folder).as_posix()}")
                blob.upload_from_filename(str(path), retry=patient())
            bucket.blob(f"{base}/{_COMPLETE}").upload_from_string(f"{len(files)} files\n", retry=patient())
    return f"gs://{bucket_name}/{base}"


def registry_files(settings: Settings) -> Callable[[str], Path]:
    """Where a version's files come from: a local copy of what the registry has, by content key.

    Raises `SetupError` where the registry has no such version or does not answer.
    """

    def fetch(uri: str) -> Path:
        try:
            return fetch_model(uri, tracking_uri=settings.mlflow_url, cache_dir=settings.state / "models")
        except (LoadFailed, RegistryUnreachable) as error:
            raise SetupError(str(error)) from error

    return fetch
