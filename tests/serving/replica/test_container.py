"""The replica in a container: what platforms tell it, as a process, and what its image is made of."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from configs.policy import Policy
from configs.sagemaker import SageMaker
from configs.vertex import Vertex
from serving.llm.errors import NotServable
from serving.llm.source import packed_source
from serving.replica.container import model_folder, spec_content
from serving.replica.loading import fetch_model
from serving.replica.spec import ReplicaSpec
from serving.sagemaker.container import environment, vllm_variable
from tests.configs.policies import sagemaker_content, valid_content, vertex_content
from tests.serving.replica.conftest import ROOT, Registry

DOCKERFILE = (ROOT / "serving" / "Dockerfile").read_text()
START_S_MAX = 240


def spec(tmp_path: Path, **variables: str) -> ReplicaSpec:
    return ReplicaSpec.model_validate(spec_content(variables, tmp_path, tmp_path))


def test_sagemakers_place_is_the_default(tmp_path: Path) -> None:
    made = spec(tmp_path)
    assert (made.port, made.aliases) == (8080, {})
    assert spec(tmp_path, SAGEMAKER_BIND_TO_PORT="8081").port == 8081
    assert model_folder({}, tmp_path) == Path("/opt/ml/model")


def test_vertex_names_port_routes_and_place(tmp_path: Path) -> None:
    made = spec(
        tmp_path, AIP_HTTP_PORT="7080", AIP_HEALTH_ROUTE="/v1/health", AIP_PREDICT_ROUTE="/v1/predict"
    )
    assert made.port == 7080
    assert made.aliases == {"/v1/health": "/health", "/v1/predict": "/invocations"}
    assert model_folder({"AIP_STORAGE_URI": "/mnt/model"}, tmp_path) == Path("/mnt/model")


def test_the_adapters_variables_are_the_policys(tmp_path: Path) -> None:
    here = SageMaker.model_validate(sagemaker_content(environment={"EXTRA": "1"}))
    content = valid_content() | {"replicas": {"concurrency": 7, "batch": {"max_rows": 9}}}
    policy = Policy.model_validate(content)
    made = environment("flights", policy, here, version="12", uri="models:/delays/12")
    read = spec(tmp_path, **made)
    assert made["EXTRA"] == "1"
    assert (read.endpoint, read.version, read.uri) == ("flights", "12", "models:/delays/12")
    assert (read.concurrency, read.batch_max_rows, read.request_timeout_s) == (7, 9, 30)


def test_vllm_options_become_the_images_variables() -> None:
    assert vllm_variable("--tensor-parallel-size") == "SM_VLLM_TENSOR_PARALLEL_SIZE"
    here = SageMaker.model_validate(
        sagemaker_content(vllm={"options": {"tensor-parallel-size": "8", "max-model-len": "8192"}})
    )
    made = environment("chat", Policy.model_validate(valid_content()), here, version="3", uri="models:/m/3")
    assert made == {
        "INTERLOCK_VERSION": "3",
        "SM_VLLM_MODEL": "/opt/ml/model",
        "SM_VLLM_SERVED_MODEL_NAME": "chat",
        "SM_VLLM_TENSOR_PARALLEL_SIZE": "8",
        "SM_VLLM_MAX_MODEL_LEN": "8192",
    }


def test_a_folder_without_a_model_and_a_port_that_is_none_are_said(tmp_path: Path) -> None:
    for variables, status, words in (
        ({"INTERLOCK_MODEL_DIR": str(tmp_path)}, 4, "MLmodel is missing"),
        ({"INTERLOCK_MODEL_DIR": str(tmp_path), "AIP_HTTP_PORT": "high"}, 2, "variable of this container"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "serving.replica.container", "serve"],
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status
        assert words in done.stderr


@contextlib.contextmanager
def running(folder: Path, **variables: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = {name: value.format(port=port) for name, value in variables.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.replica.container", "serve"],
        cwd=ROOT,
        env={**os.environ, "INTERLOCK_HOST": "127.0.0.1", "INTERLOCK_MODEL_DIR": str(folder), **told},
    )
    try:
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, "it drains and ends"
    finally:
        process.kill()
        process.wait()


def until_healthy(url: str, path: str) -> None:
    deadline = time.monotonic() + START_S_MAX
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url + path, trust_env=False).status_code == 200:
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("variables", "health", "predict"),
    [
        ({"SAGEMAKER_BIND_TO_PORT": "{port}"}, "/ping", "/invocations"),
        (
            {
                "AIP_HTTP_PORT": "{port}",
                "AIP_HEALTH_ROUTE": "/h",
                "AIP_PREDICT_ROUTE": "/v1/models/m:predict",
            },
            "/h",
            "/v1/models/m:predict",
        ),
    ],
    ids=["sagemaker", "vertex"],
)
def test_it_serves_as_the_platform_wants(
    registry: Registry, tmp_path: Path, variables: dict[str, str], health: str, predict: str
) -> None:
    import mlflow

    mlflow.set_tracking_uri(registry.tracking_uri)
    folder = fetch_model(registry.uris["strange"], tracking_uri=registry.tracking_uri, cache_dir=tmp_path)
    with running(folder, INTERLOCK_VERSION="12", **variables) as url:
        until_healthy(url, health)
        body = {"dataframe_records": [{"x": 1.0, "n": 2, "mode": "ok"}]}
        answer = httpx.post(url + predict, json=body, trust_env=False, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-interlock-version"] == "12"
        assert "predictions" in answer.json()


# -- the image ---------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_pinned_small_and_not_root() -> None:
    found = instructions()
    words = [word for word, _ in found]
    (base,) = [rest for word, rest in found if word == "FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base), "an exact version"
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert dict(found)["USER"] not in ("root", "0")
    assert not {"ADD", "ONBUILD", "MAINTAINER", "VOLUME"} & set(words)
    for word, rest in found:
        if word in ("ENTRYPOINT", "CMD"):
            assert rest.startswith('["'), "a shell would swallow SIGTERM"
        if word == "RUN":
            assert "sudo" not in rest
            assert "pip install" not in rest or "--require-hashes" in rest


def test_what_the_image_copies_is_there_and_suffices() -> None:
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY"]
    sources = {source for part in copied for source in part}
    assert all((ROOT / source).exists() for source in sources)
    assert {"configs", "serving", "requirements.lock"} == sources


# -- vLLM's images -----------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A version whose weights MLflow keeps below its files, the tokenizer elsewhere."""
    folder = tmp_path / "version"
    for part in ("artifacts/llama", "components/tokenizer"):
        (folder / part).mkdir(parents=True)
    (folder / "artifacts/llama/config.json").write_text("{}")
    (folder / "MLmodel").write_text("flavors: {}")
    return folder


def at_the_hub(folder: Path, reference: str) -> Path:
    (folder / "MLmodel").write_text(f"metadata: {{interlock: {{weights: '{reference}'}}}}")
    return folder


def test_sagemakers_vllm_finds_the_weights_below_the_version(weights: Path) -> None:
    here = SageMaker.model_validate(sagemaker_content(vllm={"options": {"max-model-len": "8192"}}))
    policy = Policy.model_validate(valid_content())

    def made() -> dict[str, str]:
        source = packed_source(weights)
        return environment("chat", policy, here, version="3", uri="models:/m/3", weights=source)

    assert made()["SM_VLLM_MODEL"] == "/opt/ml/model/artifacts/llama"
    assert made()["SM_VLLM_TOKENIZER"] == "/opt/ml/model/components/tokenizer"
    commit = "abc123" + "0" * 34
    at_the_hub(weights, f"hf:acme/llama@{commit}")
    assert (made()["SM_VLLM_MODEL"], made()["SM_VLLM_REVISION"]) == ("acme/llama", commit)
    with pytest.raises(NotServable, match="log the weights with the version"):
        packed_source(at_the_hub(weights, "s3://somewhere/llama"))


@pytest.mark.slow
def test_vertexs_vllm_is_told_by_arguments(weights: Path) -> None:
    """Slow: Google's types take seconds to import."""
    from serving.vertex.container import container

    section = vertex_content(
        vllm={"options": {"tensor-parallel-size": "2"}},
        arguments=["python", "-m", "vllm.entrypoints.api_server"],
    )
    here = Vertex.model_validate(section)
    policy = Policy.model_validate(valid_content() | {"serving": {"served_name": "chat"}})
    made = container(
        here, policy, version="3", artifacts="gs://acme/models/abc", weights=packed_source(weights)
    )
    assert list(made.args) == [
        "python",
        "-m",
        "vllm.entrypoints.api_server",
        "--host=0.0.0.0",
        "--port=8080",
        "--model=gs://acme/models/abc/artifacts/llama",
        "--tokenizer=gs://acme/models/abc/components/tokenizer",
        "--served-model-name=chat",
        "--tensor-parallel-size=2",
    ]
    assert {one.name: one.value for one in made.env} == {"INTERLOCK_VERSION": "3"}


@pytest.mark.slow
def test_vertexs_replica_knows_its_version(tmp_path: Path) -> None:
    from serving.vertex.container import container

    policy = Policy.model_validate(valid_content())
    made = container(
        Vertex.model_validate(vertex_content()), policy, version="12", artifacts="gs://acme/models/abc"
    )
    read = spec(tmp_path, **{one.name: one.value for one in made.env})
    assert (read.endpoint, read.version, read.uri) == ("flights", "12", "models:/delays/12")
    assert list(made.args) == []
