"""A prompt before the client's words: filled in, joined, refused in OpenAI's form, kept by digest."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.policy import Policy
from configs.settings import Settings
from serving.direct import DirectClient
from serving.endpoint import Slot
from serving.errors import PlatformUnavailable, Refused
from serving.llm.__main__ import _run as run
from serving.llm.errors import NotServable
from serving.llm.prompt_text import PromptText, Unrenderable, fetch_prompt, parse_prompt, read_prompt
from serving.llm.prompting import BadRequest, PromptLayer, with_prompt
from serving.llm.spec import LlmSpec, ready_file
from serving.local_replicas import ReplicaProcesses
from serving.slots import SlotRecord, SlotReplica
from serving.supervision import Supervisor
from tests.configs.policies import valid_content
from tests.serving.llm.prompts import Healthy, RegistryOfPrompts, put_prompt

MANNER = parse_prompt("Be {{ manner }}.", is_chat=False)
CHAT = parse_prompt(
    json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "I am {{who}}."}]),
    is_chat=True,
)


def chat(prompt: PromptText, messages: Any, **more: Any) -> dict[str, Any]:
    return json.loads(with_prompt(json.dumps({"messages": messages, **more}).encode(), prompt, is_chat=True))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_text_prompt_is_the_system_message() -> None:
    made = chat(MANNER, [user("hello")], prompt_variables={"manner": "kind"}, temperature=0)
    assert made == {
        "messages": [{"role": "system", "content": "Be kind."}, user("hello")],
        "temperature": 0,
    }


@pytest.mark.parametrize("role", ["system", "developer"])
def test_it_joins_a_system_message_of_the_clients(role: str) -> None:
    made = chat(
        MANNER, [{"role": role, "content": "Rhyme."}, user("hi")], prompt_variables={"manner": "kind"}
    )
    assert made["messages"] == [{"role": role, "content": "Be kind.\n\nRhyme."}, user("hi")]
    parts = [{"type": "text", "text": "Rhyme."}]
    made = chat(MANNER, [{"role": role, "content": parts}], prompt_variables={"manner": "kind"})
    assert made["messages"][0]["content"] == [{"type": "text", "text": "Be kind."}, *parts]


def test_a_chat_prompt_stands_before_all_messages() -> None:
    made = chat(CHAT, [{"role": "system", "content": "Rhyme."}, user("hi")], prompt_variables={"who": "Ann"})
    assert [one["content"] for one in made["messages"]] == ["Be brief.", "I am Ann.", "Rhyme.", "hi"]


def test_a_completion_gets_the_text_before_its_own() -> None:
    asked = {"prompt": "hello", "prompt_variables": {"manner": "kind"}}
    assert json.loads(with_prompt(json.dumps(asked).encode(), MANNER, is_chat=False)) == {
        "prompt": "Be kind.\n\nhello"
    }
    asked["prompt"] = ["a", "b"]
    made = json.loads(with_prompt(json.dumps(asked).encode(), MANNER, is_chat=False))
    assert made["prompt"] == ["Be kind.\n\na", "Be kind.\n\nb"]


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (None, "prompt_variables.manner", "missing_prompt_variable"),
        ({"manner": "kind", "tone": "x"}, "prompt_variables.tone", "unknown_prompt_variable"),
        ({"manner": ["kind"]}, "prompt_variables.manner", "invalid_prompt_variable"),
        ({"manner": True}, "prompt_variables.manner", "invalid_prompt_variable"),
        (["kind"], "prompt_variables", "invalid_prompt_variables"),
    ],
)
def test_variables_that_are_not_the_prompts_are_named(given: Any, param: str, code: str) -> None:
    with pytest.raises(BadRequest) as raised:
        chat(MANNER, [user("hi")], prompt_variables=given)
    assert (raised.value.param, raised.value.code) == (param, code)


@pytest.mark.parametrize(
    ("prompt", "asked", "code"),
    [
        (MANNER, [1, 2, 3], "prompt_needs_text"),
        (MANNER, [[1], [2]], "prompt_needs_text"),
        (CHAT, "hello", "prompt_needs_chat"),
    ],
)
def test_what_a_prompt_cannot_stand_before_is_refused(prompt: PromptText, asked: Any, code: str) -> None:
    given = {"manner": "kind"} if prompt is MANNER else {"who": "Ann"}
    body = json.dumps({"prompt": asked, "prompt_variables": given}).encode()
    with pytest.raises(BadRequest) as raised:
        with_prompt(body, prompt, is_chat=False)
    assert raised.value.code == code


@given(st.text())
def test_a_value_is_never_taken_for_a_template(value: str) -> None:
    value = "{{manner}}" + value
    made = chat(MANNER, [user("hi")], prompt_variables={"manner": value})
    assert made["messages"][0]["content"] == f"Be {value}."


def test_half_an_emoji_passes() -> None:
    asked = {"messages": [user("\ud83d")]}
    made = json.loads(
        with_prompt(json.dumps(asked).encode(), parse_prompt("Be kind.", is_chat=False), is_chat=True)
    )
    assert made["messages"][1] == user("\ud83d")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b'{"messages": 5}', b"[" * 100_000])
def test_no_request_at_all_is_left_to_the_models_server(body: bytes) -> None:
    plain = parse_prompt("Be kind.", is_chat=False)
    made = with_prompt(body, plain, is_chat=True)
    assert made == body or json.loads(made) == json.loads(body)


@pytest.mark.parametrize(
    ("template", "is_chat", "why"),
    [
        ("", False, "empty"),
        ("{% if x %}a{% endif %}", False, "Jinja"),
        ("Dear {{first name}}", False, "no variable"),
        ("not json", True, "list of messages"),
        ("[]", True, "without messages"),
        ('[{"role": "user"}]', True, "message 1 needs"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', True, "message 1 needs"),
        ('[{"role": "user", "content": "a", "name": "b"}]', True, "more than role"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(template: str, is_chat: bool, why: str) -> None:
    with pytest.raises(Unrenderable, match=why):
        parse_prompt(template, is_chat=is_chat)


def test_braces_that_are_no_variables_are_text() -> None:
    text = 'Answer {"a": {"b": 1}} in JSON.'
    assert parse_prompt(text, is_chat=False).filled({}).text == text


async def through_layer(path: str, body: bytes) -> tuple[list[dict[str, Any]], list[bytes]]:
    sent: list[Any] = []
    heard: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert dict(scope["headers"])[b"content-length"] == str(len(message["body"])).encode()
        heard.append(message["body"])
        assert (await receive())["type"] == "http.disconnect"

    told = [{"type": "http.request", "body": body[:3], "more_body": True}]
    told += [{"type": "http.request", "body": body[3:], "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return told.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    if path == "/v1/embeddings":
        told[:2] = [{"type": "http.request", "body": body, "more_body": False}]
    await PromptLayer(app, MANNER)(scope, receive, send)
    return sent, heard


def test_the_layer_hands_on_what_the_client_does_after_its_words() -> None:
    body = json.dumps({"messages": [user("hi")], "prompt_variables": {"manner": "kind"}}).encode()
    _, heard = asyncio.run(through_layer("/v1/chat/completions", body))
    assert json.loads(heard[0])["messages"][0]["content"] == "Be kind."


def test_embeddings_pass_unchanged() -> None:
    _, heard = asyncio.run(through_layer("/v1/embeddings", b'{"input": "hello"}'))
    assert heard == [b'{"input": "hello"}']


def test_a_refusal_has_openais_form() -> None:
    sent, heard = asyncio.run(through_layer("/v1/chat/completions", b'{"messages": []}'))
    assert heard == []
    assert sent[0]["status"] == 400
    error = json.loads(sent[1]["body"])["error"]
    assert error["param"] == "prompt_variables.manner"
    assert "`manner` is missing" in error["message"]


def test_a_prompt_is_read_once_and_outlives_mlflow(tmp_path: Path) -> None:
    with RegistryOfPrompts({("manner", "1"): "Be kind."}) as mlflow:
        settings = Settings(state_dir=tmp_path, mlflow_tracking_uri=mlflow.url)
        spec = fetch_prompt(settings, "manner", "1")
        assert read_prompt(spec).text == "Be kind."
        asked = mlflow.asked
        assert fetch_prompt(settings, "manner", "1", held_digest=spec.digest) == spec
        assert mlflow.asked == asked, "what a slot holds needs no registry"
        with pytest.raises(Refused, match="no prompt manner version 2"):
            fetch_prompt(settings, "manner", "2")
    assert fetch_prompt(settings, "manner", "1") == spec
    with pytest.raises(PlatformUnavailable, match="no local copy of prompt manner version 2"):
        fetch_prompt(settings, "manner", "2")


def processes_of(settings: Settings, content: dict[str, Any]) -> ReplicaProcesses:
    policy, direct = Policy.model_validate(content), DirectClient("127.0.0.1")
    return ReplicaProcesses("chat", policy, settings, Supervisor(settings), direct, ("unused",))


def test_another_server_on_an_engines_port_is_not_taken_for_it(tmp_path: Path) -> None:
    """An engine takes its port long after it was chosen, and other stacks choose from the same ones."""
    settings = Settings(state_dir=tmp_path)
    processes = processes_of(settings, valid_content())
    with Healthy() as port:
        engine = SlotReplica(f"engine-chat-1-{port}", port)
        assert not processes._answers(engine)
        ready = ready_file(settings.state, engine.name)
        ready.parent.mkdir(parents=True)
        ready.write_text("")
        assert processes._answers(engine)


def test_weights_without_an_engine_for_them_are_refused(tmp_path: Path) -> None:
    """`serving.runtime: api` starts no engine, and this version says nothing of a provider."""
    folder = tmp_path / "models" / "m-9" / "weights"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder.parent / "MLmodel").write_text("metadata:\n  interlock: {runtime: vllm}\n")
    api = {"provider": "compatible", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    content = valid_content() | {"prompt": {"name": "manner"}, "serving": {"runtime": "api", "api": api}}
    settings = Settings(state_dir=tmp_path)
    with RegistryOfPrompts({("manner", "1"): "Be kind."}) as mlflow:
        prompt = fetch_prompt(settings.model_copy(update={"mlflow_tracking_uri": mlflow.url}), "manner", "1")
    processes = processes_of(settings, content)
    record = SlotRecord("chat", Slot.BLUE, "9+p1", "models:/m-9", (), prompt_digest=prompt.digest)
    assert processes.engine_key("9+p1", "models:/m-9") == ""
    spec = processes._spec(record, SlotReplica("replica-chat-blue-1", 1), 0)
    assert isinstance(spec, LlmSpec)
    with pytest.raises(NotServable, match=r"set serving\.runtime to vllm"):
        run(spec)


def test_a_copy_that_was_changed_is_not_served(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    spec = put_prompt(settings, "manner", "1", "Be kind.")
    spec.file.write_text(spec.file.read_text().replace("kind", "rude"))
    with pytest.raises(Unrenderable, match="not the text that was recorded"):
        read_prompt(spec)
