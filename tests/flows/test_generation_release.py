"""A language model's release: placed first, judged by what its replica answers, then as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.schemas.objects import State

from configs.policy import Policy
from flows.release import release_model
from serving.endpoint import Reply
from tasks.bench import Bench
from tests.flows.world import Version, World
from tests.tasks.model_server import chat_answer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An endpoint of a language model that nothing serves yet; live traffic asks in chat form."""
    made = World(tmp_path)
    rows = [{"prompt": f"question {i}", "reference": f"answer {i}"} for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = made.policy.model_dump(mode="json")
    content["evaluation"] = {
        "task": "generation",
        "data": str(tmp_path / "prompts.jsonl"),
        "min_prompts": 20,
        "scorers": [{"kind": "exact_match", "min": 0.5, "margin": 0.05}],
    }
    content["shadow"] = {"enabled": False, "reason": "words differ"}
    made.policy = Policy.model_validate(content)
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    return made


def knows(share: float) -> Version:
    """Answers a share of the questions; any other body is live traffic."""

    def answer(body: bytes, rng: np.random.Generator) -> Reply:
        ms = float(rng.lognormal(1.1, 0.3))
        if not body.startswith(b"{"):
            return Reply(200, b"{}", ms)
        number = int(json.loads(body)["messages"][-1]["content"].split()[1])
        text = f"Answer {number}." if number < 30 * share else "Hm."
        return Reply(200, json.dumps(chat_answer(text)).encode(), ms)

    return Version(answer=answer)


def run(version: str, **parameters: Any) -> State:
    return release_model("flights", int(version), return_state=True, **parameters)


def test_versions_are_judged_in_place(world: World) -> None:
    world.add("1", knows(0.2))
    assert run("1").name == "Rejected"
    assert world.slots() == ("", ""), "a first version that failed leaves nothing behind"
    world.add("2", knows(0.7))
    assert run("2").name == "Promoted"
    world.clock.now += 60
    world.add("3", knows(0.3))
    state = run("3")
    assert state.name == "Rejected"
    assert "exact_match" in str(state.message)
    assert world.serving() == ("2", 0)
    assert sorted(world.slots()) == ["", "2"]
    world.add("4", knows(1.0))
    assert run("4").name == "Promoted"
    assert world.serving() == ("4", 0)
    assert world.runs.scored[-2:] == ["candidate 4", "champion 2"]


def test_a_prompt_is_released_like_a_model(world: World) -> None:
    content = world.policy.model_dump(mode="json")
    content |= {"prompt": {"name": "manner"}, "serving": {"runtime": "vllm"}}
    world.policy = Policy.model_validate(content)
    for version, share in (("2+p1", 0.6), ("2+p2", 0.9), ("2+p3", 0.1)):
        world.add(version, knows(share))
    assert run("2", prompt=1).name == "Promoted"
    world.clock.now += 60
    assert release_model("flights", prompt=2, return_state=True).name == "Promoted"
    assert world.serving() == ("2+p2", 0)
    assert world.registry.aliases["previous"] == "2+p1"
    world.clock.now += 60
    assert release_model("flights", prompt=3, return_state=True).name == "Rejected"
    assert world.serving() == ("2+p2", 0)
    assert world.newest().version == "2+p3"
