"""Answers as OpenAI's API writes them, read back."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from serving.completions import read_completion, read_embeddings, read_prompt


def event(*choices: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"choices": list(choices)}).encode() + b"\n\n"


@pytest.mark.parametrize("together", [False, True])
def test_of_several_answers_in_a_stream_the_first_is_read(together: bool) -> None:
    said = [
        ({"index": 1, "delta": {"content": "No"}}, {"index": 0, "delta": {"content": "Yes"}}),
        ({"index": 1, "delta": {"content": "pe"}}, {"index": 0, "delta": {"content": "!"}}),
        ({"index": 1, "finish_reason": "length"}, {"index": 0, "finish_reason": "stop"}),
        ({"index": 1, "delta": {"content": "?"}},),
    ]
    parts = [event(*pair) if together else b"".join(event(one) for one in pair) for pair in said]
    answer = read_completion(b"".join(parts) + b"data: [DONE]\n\n")
    assert answer is not None
    assert (answer.text, answer.finish_reason) == ("Yes!", "stop")


@pytest.mark.parametrize("encoded", [False, True])
def test_vectors_are_read_in_both_encodings_and_the_inputs_order(encoded: bool) -> None:
    vectors = [(0.5, -1.0), (0.25, 2.0)]
    rows = [
        {"index": i, "embedding": base64.b64encode(struct.pack("<2f", *one)).decode() if encoded else one}
        for i, one in enumerate(vectors)
    ]
    assert read_embeddings(json.dumps({"object": "list", "data": rows[::-1]}).encode()) == vectors


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"data: {}",
        b'{"data": []}',
        b'{"choices": []}',
        b'{"data": [{"index": 0, "embedding": "AAA"}]}',
        b'{"data": [{"index": 0, "embedding": [null]}]}',
        b'{"data": [{"index": 0, "embedding": 1}]}',
        b'{"error": {"message": "no"}}',
    ],
)
def test_what_holds_no_vectors_has_none(body: bytes) -> None:
    assert read_embeddings(body) is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [None]}, None),
        ({"choices": [{"message": "hi"}]}, ""),
        ({"choices": [{"message": {"tool_calls": [None, {"function": "f"}]}}]}, ""),
        ({"choices": [{"message": {"content": "half \ud83d"}}]}, "half ?"),
    ],
)
def test_strange_answers_are_read_as_far_as_they_go(body: dict[str, Any], text: str | None) -> None:
    answer = read_completion(json.dumps(body).encode())
    assert (answer and answer.text) == text


def test_strange_streams_are_read_as_far_as_they_go() -> None:
    answer = read_completion(
        b'data: {"choices":[null,{"delta":null}]}\n\n' + event({"delta": {"content": "a"}})
    )
    assert answer is not None
    assert answer.text == "a"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": ["hi", None, {"role": "user", "content": "a"}]}, "user: a"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "user: ?"),
        ({"prompt": "\ud83d"}, "?"),
        ({"prompt": [1, 2]}, None),
    ],
)
def test_strange_prompts_are_read_as_far_as_they_go(body: dict[str, Any], text: str | None) -> None:
    assert read_prompt(json.dumps(body).encode()) == text
