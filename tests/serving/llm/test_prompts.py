"""Prompts as versions behind the real gateway: fronts that share an engine, and what becomes of either."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from configs.generation import Generation
from serving.capture.reader import read_captures
from serving.endpoint import Route, Slot
from serving.errors import Refused
from tasks.answers import CANDIDATE, ask_all
from tasks.prompt_sets import PromptRow
from tests.serving.gateway.lab import Lab, eventually, lab_settings
from tests.serving.llm.conftest import NAME, SPOOL_START, Chat, chat_policy, id_of, put_version
from tests.serving.llm.engine import WORDS
from tests.serving.llm.prompts import RegistryOfPrompts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prompts")]

STREAM: dict[str, Any] = {"stream": True, "max_tokens": 32}
CHAT_PROMPT = [{"role": "system", "content": "You are {{who}}, three."}]
TEMPLATES: dict[tuple[str, str], Any] = {
    ("manner", "1"): "Be one.",
    ("manner", "2"): "Be two.",
    ("manner", "3"): CHAT_PROMPT,
    ("manner", "4"): "{% for x in y %}",
}


@pytest.fixture(scope="module")
def mlflow() -> Iterator[RegistryOfPrompts]:
    with RegistryOfPrompts(TEMPLATES) as made:
        yield made


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory, mlflow: RegistryOfPrompts) -> Iterator[Chat]:
    """Version 7 under prompt 1 serves from blue, under prompt 2 waits in green."""
    lab = Lab(lab_settings(tmp_path_factory.mktemp("prompted"), mlflow_tracking_uri=mlflow.url))
    try:
        lab.up()
        endpoint = lab.endpoint(NAME, **chat_policy(), prompt={"name": "manner"})
        endpoint.deploy(Slot.BLUE, "7+p1", uri=put_version(lab, "7"))
        url = f"http://127.0.0.1:{lab.settings.gateway_port}/{NAME}/v1"
        with openai.OpenAI(base_url=url, api_key=lab.key, max_retries=0, timeout=60) as client:
            made = Chat(lab, endpoint, client)
            route(made, "")
            made.ask("a question", extra_headers={"x-user-id": "ann"})
            # green warms up on it
            eventually(lambda: len(endpoint.exchanges(SPOOL_START, limit=10)[0]) == 1)
            endpoint.deploy(Slot.GREEN, "7+p2", uri=put_version(lab, "7"))
            yield made
    finally:
        lab.down()


def route(chat: Chat, candidate: str, share_bp: int = 0) -> None:
    plain: Route = chat.lab.route(NAME, candidate=candidate, share_bp=share_bp)
    chat.endpoint.apply(
        Route(
            endpoint=NAME,
            generation=plain.generation,
            default=Slot.BLUE,
            default_version="7+p1",
            other_version=candidate,
            salt=plain.salt,
            share_bp=share_bp,
            until=plain.until,
        )
    )


def pids(chat: Chat, kind: str) -> dict[str, int]:
    found = chat.lab.supervisor.processes()
    return {name: one.pid for name, one in found.items() if name.startswith(f"{kind}-{NAME}-")}


def answers(chat: Chat) -> bool:
    """Whether clients are answered: the gateway has seen that the replica is back."""
    try:
        return bool(chat.ask("hello").choices)
    except openai.APIError:
        return False


def system(chat: Chat) -> str:
    """What the engine was last asked: the first message's text."""
    return str(chat.endpoint._direct.get(engine_port(chat), "/asked", timeout_s=5).body.decode())


def engine_port(chat: Chat) -> int:
    (name,) = pids(chat, "engine")
    return int(name.rpartition("-")[2])


def test_both_prompts_share_one_engine(prompted: Chat) -> None:
    """First: nothing has changed yet since the candidate was placed."""
    assert len(pids(prompted, "engine")) == 1
    assert len(pids(prompted, "replica")) == 2
    for share_bp, version, text in ((0, "7+p1", "Be one."), (10_000, "7+p2", "Be two.")):
        route(prompted, "7+p2", share_bp)
        raw = prompted.client.chat.completions.with_raw_response.create(
            model=NAME, messages=[{"role": "user", "content": "hello"}]
        )
        assert raw.headers["x-interlock-version"] == version
        assert raw.parse().choices[0].message.content == "weights-7 " * WORDS
        asked = json.loads(system(prompted))
        assert [one["content"] for one in asked["messages"]] == [text, "hello"]


def test_a_candidate_warms_up_under_its_own_prompt(prompted: Chat) -> None:
    name = prompted.endpoint.describe().replicas[Slot.GREEN][0].name
    log = (prompted.lab.settings.logs_dir / f"{name}.log").read_text()
    assert "after 1 warm-up prompts" in log


def test_words_come_as_they_are_said_through_a_front(prompted: Chat) -> None:
    route(prompted, "7+p2")
    stream = iter(prompted.ask("slow", **STREAM))
    next(stream)
    assert prompted.metric(Slot.BLUE, "vllm:num_requests_running") == 1
    assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) == WORDS - 1
    assert len(prompted.endpoint.engines()[Slot.BLUE]) == 1


@pytest.mark.parametrize("options", [STREAM, {}], ids=["stream", "whole"])
def test_a_client_that_leaves_stops_the_engine(prompted: Chat, options: dict[str, Any]) -> None:
    before = prompted.metric(Slot.BLUE, "test:aborted")
    if options:
        stream = prompted.ask("slow", **options)
        next(iter(stream))
        stream.close()
    else:
        gateway = http.client.HTTPConnection("127.0.0.1", prompted.lab.settings.gateway_port)
        asked = {"model": NAME, "messages": [{"role": "user", "content": "slowest"}]}
        sent = {"x-api-key": prompted.lab.key, "content-type": "application/json"}
        gateway.request("POST", f"/{NAME}/v1/chat/completions", json.dumps(asked), sent)
        eventually(lambda: "slowest" in system(prompted))
        gateway.close()
    eventually(lambda: prompted.metric(Slot.BLUE, "test:aborted") == before + 1)


def test_requests_are_recorded_and_measured_under_the_pair(prompted: Chat) -> None:
    route(prompted, "7+p2", 10_000)
    cursor = prompted.endpoint.observations(None).cursor
    stream = prompted.ask("to be measured", **STREAM)
    for _ in stream:
        pass
    with pytest.raises(openai.InternalServerError) as fault:
        prompted.ask("fail")
    streamed, failed = prompted.observed(cursor, id_of(stream), fault.value.request_id)
    assert (streamed["version"], streamed["tokens_out"]) == ("7+p2", WORDS)
    assert 0 < streamed["ttft_ms"] < streamed["service_ms"]
    assert failed["failed"]
    folder = prompted.lab.settings.captures_dir / NAME
    eventually(lambda: streamed["request_id"] in set(read_captures(folder, versions=["7+p2"])["request_id"]))


def test_an_engines_errors_pass_as_they_are(prompted: Chat) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        prompted.ask("fail")
    assert raised.value.body == {"message": "failed", "code": 500}
    assert prompted.client.models.list().data[0].id == NAME


def test_a_stream_in_flight_outlives_its_prompts_rollback(prompted: Chat) -> None:
    route(prompted, "7+p2", 10_000)
    stream = iter(prompted.ask("slow", **STREAM))
    next(stream)
    route(prompted, "7+p2")
    prompted.endpoint.retire(Slot.GREEN)
    assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) == WORDS - 1
    assert prompted.endpoint.describe().versions[Slot.GREEN] == ""


def test_a_prompt_is_placed_and_retired_without_the_engine_noticing(prompted: Chat) -> None:
    engines = pids(prompted, "engine")
    prompted.endpoint.retire(Slot.GREEN)
    assert pids(prompted, "engine") == engines
    prompted.endpoint.deploy(Slot.GREEN, "7+p3", uri=put_version(prompted.lab, "7"))
    assert pids(prompted, "engine") == engines
    route(prompted, "7+p3", 10_000)
    prompted.ask("hello", extra_body={"prompt_variables": {"who": "Eve"}})
    assert json.loads(system(prompted))["messages"][0]["content"] == "You are Eve, three."
    assert "prompt_variables" not in json.loads(system(prompted))
    with pytest.raises(openai.BadRequestError) as raised:
        prompted.ask("hello")
    assert raised.value.param == "prompt_variables.who"
    assert raised.value.code == "missing_prompt_variable"


def test_the_evaluation_asks_each_version_under_its_own_prompt(prompted: Chat) -> None:
    told = {"task": "generation", "data": "-", "scorers": [{"kind": "exact_match", "min": 0.5}]}
    row = PromptRow(0, "a question", "a question", "", {"prompt_variables": '{"who": "Eve"}'})
    policy = Generation.model_validate(told)
    slots = {CANDIDATE: Slot.GREEN}
    answers = ask_all(prompted.endpoint, slots, [row], policy, timeout_s=30, on_progress=lambda _: None)
    assert answers[CANDIDATE][0][0].text.startswith("weights-7")
    contents = [one["content"] for one in json.loads(system(prompted))["messages"]]
    assert contents == ["You are Eve, three.", "a question"]


def test_a_prompt_that_cannot_be_filled_in_fails_its_deployment(prompted: Chat) -> None:
    route(prompted, "")
    before = prompted.endpoint.describe().versions
    with pytest.raises(Refused, match="Prompt manner version 4 cannot be put before a model: it is a Jinja"):
        prompted.endpoint.deploy(Slot.GREEN, "7+p4", uri=put_version(prompted.lab, "7"))
    with pytest.raises(Refused, match="no prompt manner version 5"):
        prompted.endpoint.deploy(Slot.GREEN, "7+p5", uri=put_version(prompted.lab, "7"))
    assert prompted.endpoint.describe().versions == before, "refused before anything was touched"


def test_a_killed_front_comes_back_and_its_engine_stays(prompted: Chat) -> None:
    route(prompted, "")
    engines = pids(prompted, "engine")
    name = prompted.endpoint.describe().replicas[Slot.BLUE][0].name
    killed = pids(prompted, "replica")[name]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: pids(prompted, "replica")[name] not in (0, killed))
    eventually(lambda: answers(prompted))
    assert pids(prompted, "engine") == engines


def test_a_front_is_unhealthy_while_its_engine_is_gone(prompted: Chat) -> None:
    route(prompted, "")
    (name,) = pids(prompted, "engine")
    killed = pids(prompted, "engine")[name]
    port = int(prompted.endpoint.describe().replicas[Slot.BLUE][0].address.rpartition(":")[2])
    os.kill(killed, signal.SIGKILL)
    # the launcher's death alone leaves the server answering; the next start of it takes that along
    eventually(lambda: prompted.endpoint._direct.get(port, "/health", timeout_s=5).status == 503)
    eventually(lambda: prompted.endpoint._direct.get(port, "/health", timeout_s=5).status == 200)
    eventually(lambda: answers(prompted))
    assert pids(prompted, "engine")[name] not in (0, killed)


def test_a_new_model_gets_an_engine_of_its_own(prompted: Chat) -> None:
    """And a command that was killed after the end of its fronts leaves it to the next one to stop."""
    route(prompted, "")
    prompted.endpoint.retire(Slot.GREEN)
    old = pids(prompted, "engine")
    prompted.endpoint.deploy(Slot.GREEN, "8+p2", uri=put_version(prompted.lab, "8"))
    both = pids(prompted, "engine")
    assert len(both) == 2
    assert old.items() < both.items()
    slots, processes = prompted.endpoint._slots, prompted.endpoint._processes
    record = slots.read(NAME, Slot.GREEN)
    assert record is not None
    processes.stop(record.replicas, slots, Slot.GREEN)
    slots.delete(NAME, Slot.GREEN)
    assert pids(prompted, "engine") == both
    prompted.endpoint.deploy(Slot.BLUE, "7+p1", uri=put_version(prompted.lab, "7"))
    assert pids(prompted, "engine") == old


def test_nothing_is_left_when_the_endpoint_goes(prompted: Chat) -> None:
    """Last."""
    prompted.endpoint.dismantle()
    assert pids(prompted, "engine") == {}
    assert pids(prompted, "replica") == {}
