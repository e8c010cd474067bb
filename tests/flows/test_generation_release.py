"""A language model's release: placed first, judged by what its replica answers, then as any other."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.schemas.objects import State

from configs.policy import Policy
from flows.cli_stack import _render_status
from flows.release import release_model
from serving.endpoint import Observations, Reply, Slot
from serving.llm.engine import EngineGauges
from tasks import engines
from tasks.bench import Bench
from tasks.status import endpoint_status
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


def test_full_engines_and_engines_that_do_not_tell_hold_every_step_and_the_promotion(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = world.policy.model_dump(mode="json")
    content["serving"] = {"runtime": "vllm", "engine": {"kv_cache": 0.9}}
    world.policy = Policy.model_validate(content)
    gauges: list[EngineGauges | None] = [EngineGauges(1, 0, 0.1)]
    monkeypatch.setattr(engines, "read_engines", lambda _: {slot: {"replica-1": gauges[0]} for slot in Slot})
    world.add("1", knows(0.7))
    assert run("1").name == "Promoted"
    world.clock.now += 60
    world.add("2", knows(0.7))
    trouble = {500: None, 9500: EngineGauges(9, 0, 0.95)}
    seconds: Counter[int] = Counter()
    said: defaultdict[int, set[str]] = defaultdict(set)

    def hold_for_a_minute() -> None:
        share = world.serving()[1]
        seconds[share] += 1
        gauges[0] = trouble[share] if share in trouble and seconds[share] < 60 else EngineGauges(1, 0, 0.1)
        reason = str(world.newest().progress.get("reason", ""))
        if reason.startswith("HOLD: replica-1"):
            said[share].add(reason)

    world.on_second = hold_for_a_minute
    assert run("2").name == "Promoted"
    assert {share: seconds[share] >= 60 for share in trouble} == {500: True, 9500: True}
    assert seconds[2500] < 60
    assert set(said) == set(trouble)
    assert all("does not tell" in reason and "Next: " in reason for reason in said[500])
    assert all("95% of the KV cache" in reason and "Next: " in reason for reason in said[9500])


def test_how_answers_end_is_told_by_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate uses up its tokens four times as often: that is said, and decides nothing."""
    read = world.endpoint.observations

    def observations(*args: Any, **kwargs: Any) -> Observations:
        """As a platform of language models has them; every fifth request's end is not known."""
        frame = (seen := read(*args, **kwargs)).frame
        number = frame["request_id"].str.removeprefix("request-").astype("int64")
        often = frame["version"].map({"1": 5, "2": 20}).fillna(0)
        ends = (number % 25 < often).astype(float).where(number % 5 > 0)
        return replace(seen, frame=frame.assign(cut_short=ends))

    world.add("1", knows(0.7))
    assert run("1").name == "Promoted"
    world.clock.now += 60
    monkeypatch.setattr(world.endpoint, "observations", observations)
    lines: list[Any] = []

    def watch_the_soak() -> None:
        if world.newest().progress.get("step") == 4:
            lines[:] = _render_status(endpoint_status(world.settings, "flights"))

    world.on_second = watch_the_soak
    world.add("2", knows(0.7))
    assert run("2").name == "Promoted"
    told = {name: value for name, value, *_ in world.runs.points if name.startswith("cut_short/")}
    assert told == pytest.approx({"cut_short/candidate": 0.8, "cut_short/champion": 0.2}, abs=0.1)
    (line,) = [line for line in lines if str(line).startswith("  answers cut short by max_tokens: ")]
    found = {name: float(share.rstrip("%")) / 100 for name, share in re.findall(r"(\w+) ([\d.]+%)", line)}
    assert found == pytest.approx({"candidate": 0.8, "champion": 0.2}, abs=0.1)
