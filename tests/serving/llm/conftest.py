"""An endpoint of language models on the real gateway, whose engine is a stand-in under the real launcher."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from serving.endpoint import Slot
from serving.local import LocalEndpoint
from tests.serving.gateway.lab import Lab, eventually, lab_settings

ENGINE = (sys.executable, "-m", "tests.serving.llm.engine")
NAME = "chat"
SPOOL_START = "blue|" + json.dumps({"writers": {}, "lost": 0})
"""The cursor of whoever reads blue's spool from its beginning."""


@dataclass
class Chat:
    """The endpoint and a client of it."""

    lab: Lab
    endpoint: LocalEndpoint
    client: openai.OpenAI

    def ask(self, text: str, **options: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model=NAME, messages=messages, **options)

    def metric(self, slot: Slot, name: str) -> float:
        reply = self.endpoint.describe().replicas[slot][0].address
        port = int(reply.rpartition(":")[2])
        text = self.endpoint._direct.get(port, "/metrics", timeout_s=5).body.decode()
        return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])

    def observed(self, cursor: str, *asked: str) -> list[dict[str, Any]]:
        """What is known of the requests with these ids, in their order: all are logged, all 200s measured.

        A request is logged, and measured by its replica, some time after the client has its answer.
        """
        found: dict[str, dict[str, Any]] = {}

        def are_known() -> bool:
            rows = self.endpoint.observations(cursor).frame.to_dict("records")
            found.update({row["request_id"]: row for row in rows})
            mine = [found[one] for one in asked if one in found]
            return len(mine) == len(asked) and all(row["stratum"] or row["status"] != 200 for row in mine)

        eventually(are_known)
        return [found[one] for one in asked]

    def route(self, share_bp: int = 0) -> None:
        self.endpoint.apply(self.lab.route(NAME, candidate="2", share_bp=share_bp))


def id_of(stream: Any) -> str:
    """The id that the gateway gave to a request whose answer is streamed."""
    return stream.response.headers["x-request-id"]


def put_version(lab: Lab, number: str) -> str:
    """A version's folder in the cache, as a download would leave it; its URI."""
    folder = lab.settings.state / "models" / f"m-{number}"
    weights = folder / "artifacts" / f"weights-{number}"
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "config.json").write_text("{}")
    (folder / "MLmodel").write_text("metadata: {}\n")
    return f"models:/m-{number}"


def chat_policy(**more: Any) -> dict[str, Any]:
    serving = {
        "runtime": "vllm",
        "vllm": {"command": ENGINE, "device": "cpu"},
        "price": {"input_per_million": 1.0, "output_per_million": 2.0},
        **more,
    }
    replicas = {"start_timeout_s": 60, "request_timeout_s": 30, "concurrency": 64}
    return {"serving": serving, "replicas": replicas, "capture": {"drop": ["content", "text", "prompt"]}}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    lab = Lab(lab_settings(tmp_path_factory.mktemp("chat")))
    try:
        lab.up()
        endpoint = lab.endpoint(NAME, **chat_policy())
        endpoint.deploy(Slot.BLUE, "1", uri=put_version(lab, "1"))
        endpoint.apply(lab.route(NAME))
        url = f"http://127.0.0.1:{lab.settings.gateway_port}/{NAME}/v1"
        with openai.OpenAI(base_url=url, api_key=lab.key, max_retries=0, timeout=60) as client:
            made = Chat(lab, endpoint, client)
            for number in range(5):
                made.ask(f"question {number}", extra_headers={"x-user-id": "ann"})
            # green warms up on them
            eventually(lambda: len(endpoint.exchanges(SPOOL_START, limit=10)[0]) == 5)
            endpoint.deploy(Slot.GREEN, "2", uri=put_version(lab, "2"))
            made.route()
            yield made
    finally:
        lab.down()
