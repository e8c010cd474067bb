"""Usage asked for and hidden again; streams joined, redacted, measured."""

from __future__ import annotations

import json

import pytest

from serving.capture.redact import Redaction
from serving.capture.streams import (
    Pace,
    Usage,
    asking_for_usage,
    is_stream,
    join_stream,
    measure,
    read_usage,
    stratum_of,
    without_usage,
)


def event(document: dict) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


def chunk(text: str, finish: str | None = None) -> bytes:
    return event(
        {
            "id": "a",
            "model": "m",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
        }
    )


USAGE = event({"id": "a", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
STREAM = chunk("my ") + chunk("secret ") + chunk("word", "stop") + USAGE + b"data: [DONE]\n\n"


def test_usage_is_asked_for_and_nothing_else_changes() -> None:
    body = b' {"model":"m", "stream": true,\n "messages":[{"content":"\\u00e9"}]}'
    asked = asking_for_usage(body)
    assert asked is not None
    assert asked.endswith(b' "stream": true,\n "messages":[{"content":"\\u00e9"}]}')
    assert json.loads(asked) == json.loads(body) | {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":false}',
        b'{"prompt":"stream"}',
        b"no json, stream",
        b'["stream"]',
        b'{"stream":true,"stream_options":{"include_usage":true}}',
    ],
)
def test_what_is_no_stream_or_asks_already_is_left_alone(body: bytes) -> None:
    assert asking_for_usage(body) is None


def test_a_byte_order_mark_breaks_nothing() -> None:
    asked = asking_for_usage(b'\xef\xbb\xbf{"stream":true}')
    assert asked is not None
    assert json.loads(asked) == {"stream": True, "stream_options": {"include_usage": True}}


def test_other_stream_options_stay() -> None:
    asked = asking_for_usage(b'{"stream":true,"stream_options":{"x":1}}')
    assert asked is not None
    assert json.loads(asked)["stream_options"] == {"x": 1, "include_usage": True}


def test_only_the_usage_event_is_taken_out() -> None:
    passed, usage = without_usage(STREAM)
    assert passed == STREAM.replace(USAGE, b"")
    assert json.loads(usage)["usage"]["prompt_tokens"] == 7
    said = chunk('"usage" is a word')
    assert without_usage(said) == (said, b"")


def test_a_stream_joins_to_a_document_that_can_be_redacted() -> None:
    document = json.loads(join_stream(STREAM))
    assert document["choices"] == [
        {"index": 0, "finish_reason": "stop", "message": {"content": "my secret word"}}
    ]
    redacted = Redaction.of(["content"], [], b"").response(join_stream(STREAM), 200)
    assert redacted is not None
    assert "secret" not in redacted
    assert "stop" in redacted


def test_tool_calls_of_a_stream_are_joined() -> None:
    parts = [
        {
            "tool_calls": [
                {"index": 0, "id": "c1", "type": "function", "function": {"name": "find", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"id"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
    ]
    stream = b"".join(event({"choices": [{"index": 0, "delta": part}]}) for part in parts)
    (call,) = json.loads(join_stream(stream))["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "find", "arguments": '{"id":1}'}


@pytest.mark.parametrize(
    "delta",
    [{"content": "\ud83d"}, {"tool_calls": [None]}, {"tool_calls": [{"index": "0"}]}],
    ids=["half an emoji", "no call", "a wrong index"],
)
def test_strange_words_of_a_stream_are_joined(delta: dict) -> None:
    stream = event({"choices": [None, {"index": 0, "delta": delta}]}) + event({"choices": None})
    (choice,) = json.loads(join_stream(stream))["choices"]
    assert list(choice["message"]) == list(delta)


def test_measures_of_a_stream() -> None:
    usage = read_usage(without_usage(STREAM)[0], without_usage(STREAM)[1])
    assert usage == Usage(7, 3, "stop")
    known = measure(b'{"stream":true,"max_tokens":16}', usage, Pace(50.0, 90.0), (1e-6, 2e-6))
    assert (known.ttft_ms, known.itl_ms, known.tokens_in, known.tokens_out) == (50.0, 20.0, 7, 3)
    assert known.cost_usd == pytest.approx(13e-6)


def test_what_is_not_known_is_none() -> None:
    known = measure(b"{}", read_usage(b"not json"), None, (1.0, 1.0))
    assert (known.ttft_ms, known.itl_ms, known.tokens_in, known.cost_usd) == (None, None, None, None)
    assert measure(b"{}", Usage(1, 1), None, None).cost_usd is None


def test_a_stream_that_was_cut_off_is_read_as_far_as_it_came() -> None:
    cut = chunk("my ") + b'data: {"id":"a","cho'
    assert json.loads(join_stream(cut))["choices"][0]["message"]["content"] == "my "
    assert read_usage(cut) == Usage(None, None, "", broken=True)


DONE = b"data: [DONE]\n\n"
ERROR = event({"error": {"message": "EngineCore died", "code": 500}})


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        (STREAM, False),
        (event({"choices": [{"index": 0, "text": "word", "finish_reason": "length"}]}) + DONE, False),
        (chunk("my ") + chunk("", "content_filter") + DONE, False),
        (chunk("my ") + DONE, True),
        (chunk("my ") + USAGE + DONE, True),
        (chunk("my ") + ERROR + DONE, True),
        (chunk("my ", "stop") + ERROR, True),
        (ERROR + DONE, True),
        (chunk("my ", "stop") + event({"choices": [{"index": 1, "delta": {"content": "a"}}]}) + DONE, True),
        (b'{"choices":[{"index":0,"finish_reason":"stop"}]}', False),
        (b'{"choices":[{"index":0,"finish_reason":null}]}', False),
        (b'{"data":[{"index":0,"embedding":[0.5]}]}', False),
        (b'{"error":{"message":"upstream failed"}}', True),
        (b"", False),
        (b"no json", False),
    ],
)
def test_a_200_may_be_no_answer(answer: bytes, broken: bool) -> None:
    assert read_usage(answer).broken == broken
    if is_stream(answer):  # so that a spool without personal data tells it as well
        assert read_usage(join_stream(answer)).broken == broken


def test_strata_follow_the_request_alone() -> None:
    short = b'{"stream":true,"max_tokens":16,"prompt":"a"}'
    assert stratum_of(short).startswith("stream/p")
    assert stratum_of(short) != stratum_of(short.replace(b'"a"', b'"' + b"a" * 5000 + b'"'))
    assert stratum_of(short) != stratum_of(short.replace(b"16", b"512"))
    assert stratum_of(b"no json") == ""
