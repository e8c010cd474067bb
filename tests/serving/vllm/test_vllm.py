"""Real vLLM on the CPU behind the real gateway: streams, measures, split, parity with vLLM by itself.

float32: with bfloat16 vLLM's worker died of an illegal instruction on a virtual machine that reports AMX.
Needs `.venv-vllm`, which `make test` makes where it can (`make vllm-env`, a minute or two); skipped
without it. Three engines: some three minutes on a quiet machine with two cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pandas as pd
import pytest

from examples.support_bot.models import VLLM_PYTHON, make_weights
from serving.endpoint import Slot
from tests.serving.gateway.lab import Lab, eventually, lab_settings
from tests.serving.llm.bare import await_models, bare_engine
from tests.serving.llm.conftest import NAME, Chat, id_of
from tests.serving.llm.parity import ASKED, outcomes, outcomes_async, whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="no .venv-vllm: make vllm-env"),
]

POLICY: dict[str, Any] = {
    "serving": {
        "runtime": "vllm",
        "vllm": {
            "device": "cpu",
            "dtype": "float32",
            "max_length": 2048,
            "kv_cache_gib": 1,
            "options": {"enforce-eager": True, "enable-auto-tool-choice": True, "tool-call-parser": "hermes"},
        },
        "price": {"replica_per_hour": 3.6, "tokens_per_s": 100},
    },
    "replicas": {"start_timeout_s": 500, "request_timeout_s": 120, "concurrency": 16},
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM by itself with the weights and flags of version 1; it starts beside the others."""
    folder = tmp_path_factory.mktemp("bare")
    weights = make_weights(folder / "weights", 1)
    flags = ("--dtype", "float32", "--max-model-len", "2048", "--enforce-eager")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    command = (str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server")
    with bare_engine(command, weights, NAME, folder / "vllm.log", *flags, *tools) as url:
        yield url


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, bare: str) -> Iterator[Chat]:
    lab = Lab(lab_settings(tmp_path_factory.mktemp("vllm")))
    try:
        lab.up()
        endpoint = lab.endpoint(NAME, **POLICY)
        for slot, version in ((Slot.BLUE, "1"), (Slot.GREEN, "2")):
            folder = lab.settings.state / "models" / f"m-{version}"
            make_weights(folder / "artifacts" / "weights", int(version))
            (folder / "MLmodel").write_text("metadata: {}\n")
            endpoint.deploy(slot, version, uri=f"models:/m-{version}")
        endpoint.apply(lab.route(NAME, candidate="2"))
        url = f"http://127.0.0.1:{lab.settings.gateway_port}/{NAME}/v1"
        with openai.OpenAI(base_url=url, api_key=lab.key, max_retries=0, timeout=120) as client:
            yield Chat(lab, endpoint, client)
    finally:
        lab.down()


def test_the_gateway_behaves_as_vllm_by_itself(real: Chat, bare: str) -> None:
    await_models(bare, 500)
    ours = outcomes(str(real.client.base_url), real.lab.key)
    assert whole(ours) == whole(outcomes(bare, "none"))
    assert ours["chat"]["usage"]["completion_tokens"] > 0
    assert ours["unknown model"][:2] == ("NotFoundError", 404)
    assert ours["bad type"][:2] == ("BadRequestError", 400)


def test_the_asynchronous_client_sees_the_same(real: Chat, bare: str) -> None:
    await_models(bare, 500)
    ours = outcomes_async(str(real.client.base_url), real.lab.key)
    assert whole(ours) == whole(outcomes_async(bare, "none"))
    assert len(ours["stream"]) > 2, "it streams"


def test_requests_are_measured_and_split(real: Chat) -> None:
    cursor = real.endpoint.observations(None).cursor
    texts, asked = {}, []
    for share_bp, version in ((0, "1"), (10_000, "2")):
        real.route(share_bp=share_bp)
        stream = real.client.chat.completions.create(**ASKED, stream=True)
        asked.append(id_of(stream))
        texts[version] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert texts["1"] != texts["2"]
    frame = pd.DataFrame(real.observed(cursor, *asked))
    assert frame["version"].tolist() == ["1", "2"]
    assert (frame["ttft_ms"] > 0).all()
    assert (frame["itl_ms"] > 0).all()
    assert (frame["tokens_in"] > 5).all()
    assert (frame["tokens_out"] <= 12).all()
    assert (frame["cost_usd"] == frame["tokens_out"] * 1e-5).all()
    assert all(len(found) == 1 for found in real.endpoint.engines().values())


def test_a_stream_survives_the_rollback_of_its_version(real: Chat) -> None:
    real.route(share_bp=10_000)
    asked = {**ASKED, "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    stream = iter(real.client.chat.completions.create(**asked, stream=True))
    next(stream)
    real.route()
    chunks = list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_client_that_leaves_stops_vllm(real: Chat) -> None:
    """Told by the tokens that were generated: vLLM counts no aborted request as ended."""
    real.route()
    before = real.metric(Slot.BLUE, "vllm:generation_tokens_total")
    asked = {**ASKED, "max_tokens": 1900, "extra_body": {"ignore_eos": True}}
    stream = real.client.chat.completions.create(**asked, stream=True)
    next(iter(stream))
    stream.close()
    real.client.chat.completions.create(**ASKED)  # its steps bring the gauges up to date
    eventually(lambda: real.metric(Slot.BLUE, "vllm:num_requests_running") == 0, 300)
    assert real.metric(Slot.BLUE, "vllm:generation_tokens_total") - before < 1900
