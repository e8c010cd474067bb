"""The shadow of a language model in a release: live chats are asked again, and their answers compared."""

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
from serving.records import ReleaseState
from tasks.bench import Bench
from tasks.trail import DIFFERENCES
from tests.flows.world import Version, World
from tests.tasks.model_server import chat_answer, model_server

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

EVALUATED = 30
HOURS = "We open at nine and close at five, every day but Sunday."
POEM = "Roses wither; what remains of {} summers is their smell."


def says(text: str) -> Version:
    """Knows every answer of the evaluation, and says this to everything else."""

    def answer(body: bytes, rng: np.random.Generator) -> Reply:
        number = int(json.loads(body)["messages"][-1]["content"].split()[1])
        said = f"Answer {number}." if number < EVALUATED else text.format(number)
        return Reply(200, json.dumps(chat_answer(said)).encode(), float(rng.lognormal(1.1, 0.3)))

    return Version(answer=answer)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Version 1 tells the hours; live traffic chats."""
    made = World(tmp_path)
    rows = [{"prompt": f"question {i}", "reference": f"answer {i}"} for i in range(EVALUATED)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = made.policy.model_dump(mode="json")
    content["evaluation"] = {
        "task": "generation",
        "data": str(tmp_path / "prompts.jsonl"),
        "min_prompts": 20,
        "scorers": [{"kind": "exact_match", "min": 0.5, "margin": 0.05}],
    }
    made.policy = Policy.model_validate(content)
    compare_by(made)
    made.request = lambda number: json.dumps(
        {"messages": [{"role": "user", "content": f"question {number + EVALUATED}"}]}
    ).encode()
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", says(HOURS))
    assert run("1").name == "Promoted"
    made.clock.now += 60
    return made


def compare_by(world: World, **text: Any) -> None:
    """Let the shadow compare words in this way."""
    content = world.policy.model_dump(mode="json")
    content["shadow"] |= {"score_tolerance": None, "text": text, "timeout_s": 60}
    world.policy = Policy.model_validate(content)


def by_embeddings(url: str) -> dict[str, Any]:
    """A server that is asked once, and no second time."""
    return {"compare": "embeddings", "embeddings": {"url": url, "model": "e", "retries": 0}}


def run(version: str) -> State:
    return release_model("flights", int(version), return_state=True)


def test_one_that_says_the_same_in_other_words_passes_the_shadow(world: World) -> None:
    world.add("2", says(HOURS.replace("five", "5")))
    assert run("2").name == "Promoted"
    assert world.newest().verdicts["shadow"]["outcome"] == "PASS"
    assert DIFFERENCES not in world.runs.documents


def test_one_that_says_something_else_is_rejected_and_the_page_shows_it(world: World) -> None:
    world.add("2", says(POEM))
    state = run("2")
    assert state.name == "Rejected"
    assert world.newest().decided_stage == "shadow"
    assert "outputs differ" in str(state.message)
    page = world.runs.documents[DIFFERENCES]
    assert "Roses wither" in page
    assert HOURS in page
    assert world.serving() == ("1", 0)


def test_a_server_that_is_away_for_a_while_is_waited_for(world: World) -> None:
    with model_server() as server:
        compare_by(world, **by_embeddings(server.url))
        server.failures = [503, 503, 503]
        world.add("2", says(HOURS))
        assert run("2").name == "Promoted"
        assert server.failures == []
    progress = world.newest().verdicts["shadow"]
    assert progress["outcome"] == "PASS"


def test_one_that_never_comes_back_interrupts_and_the_release_goes_on_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with model_server() as server:
        compare_by(world, **by_embeddings(server.url))
        server.failures = [503] * 1000
        world.add("2", says(HOURS))
        began = world.clock.now
        state = run("2")
        assert state.name == "Interrupted"
        assert world.clock.now - began > world.policy.shadow.timeout_s
        assert "/embeddings (model e): 503" in str(state.message)
        assert "Next: " in str(state.message)
        assert str(state.message).endswith("then interlock resume flights")
        assert "Traceback" not in caplog.text
        assert world.newest().state is ReleaseState.INTERRUPTED
        assert "shadow" not in world.newest().verdicts
        assert world.serving() == ("1", 0)

        server.failures = []
        world.clock.now += 60
        assert run("2").name == "Promoted"
