"""What is answered: whole answers and streams, cut anywhere, blocked, redacted, never in part."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.guards.model import Scripted, ask, ask_now, chat, guarded

EMAIL = "ann@example.com"
BLOCK = {"check": "personal", "kinds": ["email"], "action": "block"}
REDACT = BLOCK | {"action": "redact"}
LEAK = f"Sure. You can write to {EMAIL} about it. She answers soon, they say."


def by(size: int, text: str) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def test_a_whole_answer_is_blocked_with_the_reason_that_clients_know() -> None:
    layer = guarded(Scripted(LEAK), output=[BLOCK])
    (choice,) = ask(layer, chat()).document["choices"]
    assert choice == {
        "index": 0,
        "finish_reason": "content_filter",
        "message": {"role": "assistant", "content": ""},
    }
    assert layer.counts.get("output", "personal", "block") == 1


def test_a_whole_answer_is_redacted_and_its_log_probabilities_go() -> None:
    (choice,) = ask(guarded(Scripted(LEAK), output=[REDACT]), chat()).document["choices"]
    assert choice["message"]["content"] == LEAK.replace(EMAIL, "<email>")
    assert choice["finish_reason"] == "stop"
    assert "logprobs" not in choice


def test_answers_without_finds_pass_byte_for_byte() -> None:
    app = Scripted(*by(7, "All is well. " * 30))
    for asked in (chat(), chat(stream=True)):
        plain, got = ask(app, asked), ask(guarded(app, output=[REDACT]), asked)
        assert got.body == plain.body
        assert got.ended


def test_events_stay_events_of_their_own() -> None:
    app = Scripted(*by(7, "All is well. " * 5))
    got = ask(guarded(app, output=[REDACT]), chat(stream=True))
    assert all(body.count(b"data:") == 1 for body in got.bodies)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 200])
@pytest.mark.parametrize("hold", [{}, {"hold_characters": 1, "overlap_characters": 30}])
def test_a_stream_is_redacted_wherever_it_is_cut(size: int, hold: dict[str, int]) -> None:
    layer = guarded(Scripted(*by(size, LEAK)), output=[REDACT], stream=hold)
    got = ask(layer, chat(stream=True))
    assert got.text == LEAK.replace(EMAIL, "<email>")
    assert got.choices[-1]["finish_reason"] == "stop"
    assert layer.counts.get("output", "personal", "redact") == 1
    changed = [choice for choice in got.choices if "logprobs" not in choice]
    assert changed, "log probabilities tell the words that were taken out"
    assert not any("@" in json.dumps(choice) for choice in got.choices)


def test_half_an_emoji_beside_a_find_stays_text_that_can_be_decoded() -> None:
    got = ask(guarded(Scripted(f"\ud83d {EMAIL}. "), output=[REDACT]), chat(stream=True))
    assert "<email>" in got.body.decode()


@pytest.mark.parametrize("size", [1, 3, 8, 200])
def test_a_blocked_stream_ends_without_a_word_of_it(size: int) -> None:
    app = Scripted(*by(size, LEAK), *["more "] * 50)
    layer = guarded(app, output=[BLOCK])
    got = ask(layer, chat(stream=True))
    assert LEAK.startswith(got.text)
    assert "ann" not in got.text
    assert got.choices[-1]["finish_reason"] == "content_filter"
    assert got.choices[-1]["delta"] == {}
    assert got.ended
    assert layer.counts.get("output", "personal", "block") == 1


def test_a_blocked_stream_stops_the_model() -> None:
    app = Scripted(LEAK, *["more. "] * 500)
    got = ask(guarded(app, output=[BLOCK]), chat(stream=True))
    assert app.was_left
    assert app.sent < 500
    assert got.text == ""


@settings(max_examples=150, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    words=st.lists(
        st.sampled_from([EMAIL, "well.", "so\n", "and", "a" * 50, "\u00e9t\u00e9"]), min_size=1, max_size=12
    ),
)
def test_no_cut_of_a_stream_lets_a_find_out(cuts: list[int], words: list[str]) -> None:
    text = " ".join(words)
    parts, at = list[str](), 0
    while at < len(text):
        size = cuts[len(parts) % len(cuts)]
        parts.append(text[at : at + size])
        at += size
    got = ask(guarded(Scripted(*parts), output=[REDACT], stream={"hold_characters": 20}), chat(stream=True))
    assert got.text == text.replace(EMAIL, "<email>")


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_tools_arguments_are_read_through_their_escapes(size: int) -> None:
    arguments = '{"to": "ann\\u0040example.com", "card": 4111111111111111}'
    kinds = REDACT | {"kinds": ["email", "credit_card"]}
    app = Scripted(*by(size, arguments), field="arguments")
    got = ask(guarded(app, output=[kinds]), chat(stream=True))
    deltas = [choice["delta"].get("tool_calls") for choice in got.choices]
    told = "".join(calls[0]["function"]["arguments"] for calls in deltas if calls)
    assert json.loads(told) == {"to": "<email>", "card": "<credit_card>"}
    (choice,) = ask(guarded(app, output=[kinds]), chat()).document["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"to": "<email>", "card": "<credit_card>"}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "refusal", "something_new"])
def test_every_field_of_an_answer_is_checked(field: str) -> None:
    got = ask(guarded(Scripted(*by(4, LEAK), field=field), output=[BLOCK]), chat(stream=True))
    assert got.choices[-1]["finish_reason"] == "content_filter"
    assert b"ann@" not in got.body


def test_text_completions_are_checked_too() -> None:
    class Text(Scripted):
        async def event(self, send, delta, finish=None) -> None:
            choice = {"index": 0, "text": delta.get("content", ""), "finish_reason": finish}
            body = b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

    layer = guarded(Text(*by(4, LEAK)), output=[BLOCK])
    got = ask(layer, {"prompt": "x", "stream": True}, "/v1/completions")
    assert got.choices[-1] == {"index": 0, "finish_reason": "content_filter", "text": ""}
    assert "ann" not in "".join(choice["text"] for choice in got.choices)


class Two(Scripted):
    """Two answers side by side, of which the second leaks."""

    async def __call__(self, scope, receive, send) -> None:
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        parts = [by(6, "All is well. " * 4), by(6, LEAK)]
        for pair in zip(*parts, strict=False):
            for index, part in enumerate(pair):
                choice = {"index": index, "delta": {"content": part}, "finish_reason": None}
                await self.raw(send, {"choices": [choice]})
        for index in (0, 1):
            await self.raw(send, {"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]})
        await self.raw(send, {"choices": [], "usage": {"completion_tokens": 9}})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def raw(self, send, document) -> None:
        body = b"data: " + json.dumps(document).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})


def test_of_several_answers_only_the_blocked_one_ends() -> None:
    got = ask(guarded(Two(), output=[BLOCK]), chat(stream=True, n=2))
    reasons = {choice["index"]: choice["finish_reason"] for choice in got.choices if choice["finish_reason"]}
    texts = {
        index: "".join(c["delta"].get("content", "") for c in got.choices if c["index"] == index)
        for index in (0, 1)
    }
    assert reasons == {0: "stop", 1: "content_filter"}
    assert texts[0] == "".join(by(6, "All is well. " * 4))
    assert "ann" not in texts[1]
    assert b"completion_tokens" in got.body


def test_what_cannot_be_read_does_not_go_out() -> None:
    class Garbled(Scripted):
        async def __call__(self, scope, receive, send) -> None:
            await receive()
            await self.whole(send, b"<html>ann@example.com")

    assert b"ann" not in ask(guarded(Garbled(), output=[BLOCK]), chat()).body


def test_errors_of_the_model_pass() -> None:
    class Failing(Scripted):
        async def __call__(self, scope, receive, send) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b'{"error":{}}'})

    got = ask(guarded(Failing(), output=[BLOCK]), chat())
    assert (got.status, got.body) == (500, b'{"error":{}}')


RELEASE = threading.Event()


def hanging(text: str) -> list[tuple[str, int, int]]:
    if "HANG" in text:
        RELEASE.wait(60)
    return []


@pytest.mark.parametrize(("on_error", "reason"), [("block", "content_filter"), ("pass", "stop")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_check_that_hangs_holds_nobody_up(on_error: str, reason: str, stream: bool) -> None:
    RELEASE.clear()
    check = {"check": f"{__name__}.hanging", "action": "block"}
    slow = guarded(Scripted("HANG. ", "on"), output=[check], timeout_s=0.05, on_error=on_error)

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(ask_now(slow, chat(stream=stream)), ask_now(quick, chat(stream=stream)))

    quick = guarded(Scripted("fine"), output=[check])
    first, second = asyncio.run(both())
    RELEASE.set()
    assert (first.choices if stream else first.document["choices"])[-1]["finish_reason"] == reason
    assert (second.choices if stream else second.document["choices"])[-1]["finish_reason"] == "stop"
    assert slow.counts.get("output", check["check"], "error") >= 1


def test_checks_that_never_end_are_bounded() -> None:
    RELEASE.clear()
    check = {"check": f"{__name__}.hanging", "action": "block"}
    layer = guarded(Scripted("HANG"), output=[check], timeout_s=0.01)

    async def many() -> None:
        for _ in range(70):
            await ask_now(layer, chat())

    before = threading.active_count()
    asyncio.run(many())
    assert threading.active_count() - before <= 64
    RELEASE.set()
    assert layer.counts.get("output", check["check"], "error") == 70


@pytest.mark.parametrize("size", [1, 3, 6])
def test_a_find_with_spaces_is_not_let_out_word_by_word(size: int) -> None:
    said = "The number is 4111 1111 1111 1111 and that is all there is to say about it "
    cards = REDACT | {"kinds": ["credit_card"]}
    hold = {"hold_characters": 1, "overlap_characters": 25}
    got = ask(guarded(Scripted(*by(size, said)), output=[cards], stream=hold), chat(stream=True))
    assert got.text == said.replace("4111 1111 1111 1111", "<credit_card>")


def test_a_find_that_began_in_a_sentence_already_out_ends_the_answer() -> None:
    phrase = {"check": "phrases", "phrases": ["project falcon"], "action": "block"}
    got = ask(guarded(Scripted("It is project.\n", "Falcon it is. "), output=[phrase]), chat(stream=True))
    assert got.text == "It is project.\n"
    assert got.choices[-1]["finish_reason"] == "content_filter"


def test_what_went_on_elsewhere_holds_nothing_up() -> None:
    """Thoughts that ended without a full stop, a tool's name: they are whole once something else follows."""

    async def run() -> None:
        stream = guarded(Scripted(), output=[REDACT]).held_stream({})

        async def feed(delta: dict[str, Any]) -> int:
            document = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            return len(await stream.feed(b"data: " + json.dumps(document).encode()))

        assert await feed({"role": "assistant", "content": ""}) == 1
        assert await feed({"reasoning_content": "they ask for a parcel"}) == 0
        assert await feed({"content": "It is on its way. "}) == 2
        assert await feed({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "find"}}]}) == 1

    asyncio.run(run())
