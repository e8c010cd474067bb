"""What a registered version is: weights to serve, or a name at a provider.

The version's folder comes from the registry once and is kept by model id. In it the weights are
those of MLflow's transformers flavour, or any logged folder with a `config.json`, or a reference
in the MLmodel's metadata:

    metadata:
      interlock: {weights: s3://bucket/llama, runtime: vllm}
      interlock: {runtime: api, model: gpt-4.1-mini-2025-04-14}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from configs.serving_runtime import Runtime, Serving
from serving.llm.errors import NotServable
from serving.model_cache import fetch_once

_DEPTH_MAX = 4
_HUB = "hf:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIXED_MODEL = re.compile(r"models:/([^/@]+/\d+(/.+)?|m-[0-9a-f]+)")
_RUNTIMES: tuple[Runtime, ...] = ("pyfunc", "vllm", "api")


@dataclass(frozen=True, slots=True)
class Source:
    """What to serve. `weights` is a folder or a name at the Hub (with `revision`), "" for an API."""

    runtime: Runtime
    weights: str = ""
    revision: str = ""
    tokenizer: str = ""
    model: str = ""


def source_of(folder: Path, serving: Serving, *, cache_dir: Path, tracking_uri: str) -> Source:
    """The version in `folder`, as the policy and its own metadata say. Raises `NotServable`.

    Weights that are only referred to are downloaded here, once, into `cache_dir` by the reference's
    digest: a reference must never change its content. A folder of this machine is not copied.
    """
    note = _note(folder)
    runtime = note.get("runtime", serving.runtime)
    if runtime not in _RUNTIMES or runtime == "pyfunc":
        raise NotServable(
            f"{folder}: the version asks for runtime {runtime!r} on an endpoint of language models. "
            "Next: vllm or api, in the MLmodel's metadata, or release it on an endpoint of its own."
        )
    if runtime == "api":
        if serving.api is None:
            raise NotServable(
                "The version asks for a provider's API; the policy names none. Next: write serving.api."
            )
        model = str(note.get("model") or serving.api.model)
        if not model:
            raise NotServable(
                "Neither the version's metadata nor serving.api.model names the provider's model. "
                "Next: log the version with metadata {'interlock': {'runtime': 'api', 'model': NAME}}."
            )
        return Source("api", model=model)
    reference = str(note.get("weights") or "")
    if reference.startswith(_HUB):
        return _at_the_hub(reference)
    base = _fetched(reference, cache_dir, tracking_uri) if reference else folder
    return _local(base)


def packed_source(folder: Path) -> Source:
    """The weights of a version that a platform's own vLLM container serves. Raises `NotServable`.

    Paths are relative to the version's files, which the platform copies as they are ("." for their top).
    """
    reference = str(_note(folder).get("weights") or "")
    if reference.startswith(_HUB):
        return _at_the_hub(reference)
    if reference:
        raise NotServable(
            f"The version refers to {reference}, which a managed container does not fetch. Next: log the "
            f"weights with the version, or refer to {_HUB}NAME@COMMIT."
        )
    found = _local(folder)
    tokenizer = Path(found.tokenizer).relative_to(folder).as_posix() if found.tokenizer else ""
    return Source("vllm", weights=Path(found.weights).relative_to(folder).as_posix(), tokenizer=tokenizer)


def _at_the_hub(reference: str) -> Source:
    name, _, revision = reference.removeprefix(_HUB).partition("@")
    if not name or not _COMMIT.fullmatch(revision):
        name = name or "ORG/NAME"
        raise NotServable(
            f"{reference} names no commit, so its weights may change. Next: {_HUB}{name}@COMMIT in the "
            "metadata, with all 40 hex digits of one in the model's history at the Hub (the newest: "
            f"huggingface_hub.model_info({name!r}).sha)."
        )
    return Source("vllm", weights=name, revision=revision)


def _note(folder: Path) -> Mapping[str, Any]:
    """The version's own words: `metadata.interlock` of its MLmodel; nothing where it has none."""
    import yaml

    try:
        document: Any = yaml.safe_load((folder / "MLmodel").read_text())
    except FileNotFoundError:
        return {}
    metadata: Any = document.get("metadata") if isinstance(document, dict) else None
    note: Any = metadata.get("interlock") if isinstance(metadata, dict) else None
    return cast("dict[str, Any]", note) if isinstance(note, dict) else {}


def _local(folder: Path) -> Source:
    tokenizer = folder / "components" / "tokenizer"  # where MLflow's transformers flavour puts it
    for depth in range(_DEPTH_MAX):
        for found in sorted(folder.glob("/".join(["*"] * depth + ["config.json"]))):
            if "tokenizer" not in found.parent.parts:
                beside = (found.parent / "tokenizer_config.json").exists()
                return Source(
                    "vllm",
                    weights=str(found.parent),
                    tokenizer="" if beside or not tokenizer.is_dir() else str(tokenizer),
                )
    raise NotServable(
        f"{folder} has no weights (a folder with config.json), and no metadata that refers to some. Next: "
        "log the model with mlflow.transformers, or its folder as an artifact."
    )


def weights_key(folder: Path) -> str:
    """The cache key of the weights that a version in `folder` refers to; "" where none are downloaded."""
    reference = str(_note(folder).get("weights") or "")
    return "" if not reference or reference.startswith((_HUB, "/")) else _key(reference)


def _key(reference: str) -> str:
    return f"weights-{hashlib.sha256(reference.encode()).hexdigest()[:32]}"


def _fetched(reference: str, cache_dir: Path, tracking_uri: str) -> Path:
    """The local copy of weights that a version refers to. A folder of this machine is served where it is."""
    if reference.startswith("/"):
        return Path(reference)
    if reference.startswith("models:/") and not _FIXED_MODEL.fullmatch(reference):
        raise NotServable(
            f"{reference} may come to mean another version, and the copy is kept under this name. Next: "
            "models:/NAME/VERSION in the metadata."
        )

    def download(into: Path) -> str:
        from mlflow.artifacts import download_artifacts

        return download_artifacts(artifact_uri=reference, dst_path=str(into), tracking_uri=tracking_uri)

    try:
        return fetch_once(cache_dir, _key(reference), download)
    except Exception as error:
        raise NotServable(
            f"Downloading the weights {reference} failed: {type(error).__name__}: {error}. "
            "Next: check the reference and this machine's access to it."
        ) from error
