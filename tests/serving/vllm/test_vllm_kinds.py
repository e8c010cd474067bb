"""Real vLLM on the CPU: adapters (LoRA) behind guards, and a model for embeddings. Two minutes here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from examples.support_bot.models import VLLM_PYTHON, make_weights
from serving.endpoint import Slot
from serving.slots import SlotFiles
from tests.serving.gateway.lab import Lab, lab_settings
from tests.serving.llm.parity import ASKED, outcomes
from tests.serving.vllm.test_vllm import POLICY

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="no .venv-vllm: make vllm-env"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(lab_settings(tmp_path_factory.mktemp("kinds")))
    try:
        made.up()
        folder = made.settings.state / "models" / "m-1"
        make_weights(folder / "artifacts" / "weights", 1)
        (folder / "MLmodel").write_text("metadata: {}\n")
        yield made
    finally:
        made.down()


def serve(lab: Lab, name: str, **serving: Any) -> str:
    """An endpoint of these weights; its URL for clients."""
    vllm = {**POLICY["serving"]["vllm"], **serving.pop("vllm", {})}
    policy = {**POLICY, "serving": {**POLICY["serving"], **serving, "vllm": vllm}}
    endpoint = lab.endpoint(name, **policy)
    endpoint.deploy(Slot.BLUE, "1", uri="models:/m-1")
    endpoint.apply(lab.route(name))
    return f"http://127.0.0.1:{lab.settings.gateway_port}/{name}/v1"


def test_adapters_answer_under_their_names_and_guards_change_nothing_else(lab: Lab, tmp_path: Path) -> None:
    weights = lab.settings.state / "models" / "m-1" / "artifacts" / "weights"
    adapter = tmp_path / "loud"
    script = Path(__file__).with_name("adapter.py")
    subprocess.run([str(VLLM_PYTHON), str(script), str(weights), str(adapter)], check=True, timeout=120)
    phrase = {"check": "phrases", "phrases": ["a phrase that no model says"], "action": "block"}
    url = serve(lab, "chat", vllm={"lora": {"loud": str(adapter)}}, guards={"output": [phrase]})
    with openai.OpenAI(base_url=url, api_key=lab.key, max_retries=0, timeout=120) as client:
        assert {model.id for model in client.models.list()} == {"chat", "loud"}
        texts = {
            name: client.chat.completions.create(**{**ASKED, "model": name}).choices[0].message.content
            for name in ("chat", "loud")
        }
        assert texts["chat"] != texts["loud"]
    record = SlotFiles(lab.settings).read("chat", Slot.BLUE)
    assert record is not None
    bare = f"http://127.0.0.1:{record.engines[0].port}/v1"
    assert outcomes(url, lab.key) == outcomes(bare, "none")


def test_a_model_for_embeddings(lab: Lab) -> None:
    options = {"enforce-eager": True, "runner": "pooling", "convert": "embed"}
    url = serve(lab, "vectors", vllm={"options": options})
    with openai.OpenAI(base_url=url, api_key=lab.key, max_retries=0, timeout=120) as client:
        found = client.embeddings.create(model="vectors", input=["a parcel", "a parcel", "something else"])
        first, second, other = (one.embedding for one in found.data)
        assert len(first) == 128
        assert first == pytest.approx(second, abs=1e-5)
        assert first != pytest.approx(other, abs=1e-3)
        assert found.usage.prompt_tokens > 0
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="vectors", input=[{"no": "text"}])  # type: ignore[list-item]
