"""What a version's folder says it is served by, without any network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.serving_runtime import Serving
from serving.llm.errors import NotServable
from serving.llm.source import Source, source_of

OWN = Serving(runtime="vllm")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    return made


def says(folder: Path, **note: Any) -> Path:
    (folder / "MLmodel").write_text(yaml.safe_dump({"metadata": {"interlock": note}}))
    return folder


def found(folder: Path, serving: Serving = OWN) -> Source:
    return source_of(folder, serving, cache_dir=folder.parent / "cache", tracking_uri="http://127.0.0.1:9")


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def test_mlflows_transformers_layout_has_its_tokenizer_elsewhere(folder: Path) -> None:
    weights = put(folder / "model", "config.json")
    tokenizer = put(folder / "components" / "tokenizer", "config.json", "tokenizer_config.json")
    assert found(folder) == Source("vllm", weights=str(weights), tokenizer=str(tokenizer))
    (weights / "tokenizer_config.json").write_text("{}")
    assert found(folder) == Source("vllm", weights=str(weights)), "its own comes first"


def test_a_folder_of_weights_among_the_artifacts(folder: Path) -> None:
    weights = put(folder / "artifacts" / "llama", "config.json")
    assert found(folder) == Source("vllm", weights=str(weights))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    put(folder / "artifacts", "notes.txt")
    with pytest.raises(NotServable, match=r"has no weights.*Next: log the model"):
        found(folder)


def test_a_name_at_the_hub_needs_a_commit(folder: Path) -> None:
    commit = "c0ffee" + "0" * 34
    assert found(says(folder, weights=f"hf:org/llama@{commit}")) == Source(
        "vllm", weights="org/llama", revision=commit
    )
    for moving in ("", "@", "@main", "@v1.0", "@c0ffee", f"@{commit}0"):
        with pytest.raises(NotServable, match=r"names no commit.*Next: hf:org/llama@COMMIT.*40 hex digits"):
            found(says(folder, weights=f"hf:org/llama{moving}"))


@pytest.mark.parametrize(
    "reference", ["models:/llama@champion", "models:/llama/latest", "models:/llama@champion/3"]
)
def test_a_registered_model_needs_a_version(folder: Path, reference: str) -> None:
    with pytest.raises(NotServable, match=r"may come to mean another version.*Next: models:/NAME/VERSION"):
        found(says(folder, weights=reference))


def test_a_folder_of_this_machine_is_served_where_it_is(folder: Path) -> None:
    weights = put(folder.parent / "large", "config.json")
    assert found(says(folder, weights=str(weights))) == Source("vllm", weights=str(weights))
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize(
    "reference", ["s3://weights/llama", "models:/llama/3", "models:/llama/3/weights/int8"]
)
def test_a_reference_is_downloaded_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    asked: list[str] = []

    def download(*, artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        asked.append(artifact_uri)
        return str(put(Path(dst_path) / "llama", "config.json"))

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    says(folder, weights=reference)
    first = found(folder)
    assert (Path(first.weights) / "config.json").exists()
    assert found(folder) == first
    assert asked == [reference]


def test_a_download_that_failed_leaves_nothing_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*, artifact_uri: str, dst_path: str, tracking_uri: str) -> str:
        put(Path(dst_path) / "half", "config.json")
        raise OSError("the store is away")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", download)
    with pytest.raises(NotServable, match=r"s3://weights/llama failed: OSError: the store is away. Next:"):
        found(says(folder, weights="s3://weights/llama"))
    assert [path for path in (folder.parent / "cache").iterdir() if path.is_dir()] == []


def test_a_providers_model_is_a_name(folder: Path) -> None:
    api = Serving.model_validate({"runtime": "vllm", "api": {"provider": "openai", "model": "small"}})
    assert found(says(folder, runtime="api"), api) == Source("api", model="small")
    assert found(says(folder, runtime="api", model="large"), api) == Source("api", model="large")
    with pytest.raises(NotServable, match=r"Next: write serving\.api"):
        found(folder)
    nameless = Serving.model_validate({"runtime": "vllm", "api": {"provider": "openai"}})
    with pytest.raises(NotServable, match="names the provider's model"):
        found(says(folder, runtime="api"), nameless)


def test_another_runtime_is_refused(folder: Path) -> None:
    with pytest.raises(NotServable, match="runtime 'pyfunc' on an endpoint of language models"):
        found(says(folder, runtime="pyfunc"))
