"""Streamed answers of language models: asked for their usage, joined to one document, measured.

OpenAI's streams say how many tokens they cost only to clients that ask for it. So the capture asks
for all of them and takes the extra event out again before the client sees it: nothing else of the
request or the stream is changed. Standard library only: this also runs inside vLLM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

_ASKS = b'{"stream_options":{"include_usage":true},'
_DONE = b"[DONE]"
_BROKE_OFF = "the stream was ended before its answer was"

BLOCKED = "content_filter"
"""The finish reason of an answer that a guard, ours or the provider's, kept back."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When a stream's events passed, in milliseconds since the request came; None for no stream."""

    first_ms: float
    last_ms: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer says of itself; tokens are None where it does not say them.

    `finish_reason` is the first choice's, or `BLOCKED` where any is. `broken`: it came with status 200 and
    is an error, or a stream that was ended before its answer was.
    """

    tokens_in: int | None = None
    tokens_out: int | None = None
    finish_reason: str = ""
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one request. Milliseconds and dollars; None where unknown.

    `itl_ms` is the mean time between two tokens. `stratum` is of the request alone (see `stratum_of`).
    """

    ttft_ms: float | None
    itl_ms: float | None
    tokens_in: int | None
    tokens_out: int | None
    cost_usd: float | None
    finish_reason: str
    broken: bool
    stratum: str


def asking_for_usage(body: bytes) -> bytes | None:
    """The same request, asking for usage as well; None where it is no stream or asks already."""
    if b'"stream"' not in body:
        return None
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    fields = cast("dict[str, Any]", document)
    if fields.get("stream") is not True:
        return None
    options: object = fields.get("stream_options")
    if "stream_options" not in fields and body.lstrip()[:1] == b"{":
        return _ASKS + body.lstrip()[1:]  # spliced in, so that every other byte stays as the client sent it
    if options is None:
        return json.dumps({**fields, "stream_options": {"include_usage": True}}).encode()
    if isinstance(options, dict) and not cast("dict[str, Any]", options).get("include_usage"):
        return json.dumps({**fields, "stream_options": {**options, "include_usage": True}}).encode()
    return None


def without_usage(body: bytes) -> tuple[bytes, bytes]:
    """Whole events of a stream without the one that only carries usage, and that event's data or b""."""
    if b'"usage"' not in body:
        return body, b""
    kept: list[bytes] = []
    usage = b""
    for event in body.split(b"\n\n"):
        data = event.removeprefix(b"data:").strip()
        if b'"usage"' in data and _is_usage(data):
            usage = data
        else:
            kept.append(event)
    return (b"\n\n".join(kept) if usage else body), usage


def is_stream(body: bytes) -> bool:
    """Whether a body is a recorded stream."""
    return body.lstrip()[:5] == b"data:"


def join_stream(body: bytes) -> bytes:
    """A stream as the document that the same request would have got without streaming.

    One that was ended before its answer was has an `error`, for the document alone would not tell. Unlike
    the events it can be redacted by the names of its fields, and is a tenth of their size.
    """
    return json.dumps(_joined(body)).encode()  # ASCII: a lone surrogate would have no bytes


def read_usage(response: bytes, apart: bytes = b"") -> Usage:
    """What an answer with status 200 says of itself, streamed or not. `apart` is a usage event kept apart."""
    try:
        document: Any = _joined(response) if is_stream(response) else json.loads(response)
        counts: Any = (json.loads(apart) if apart else document).get("usage") or {}
        choices: Any = document.get("choices") or [{}]
        reasons = [str(choice.get("finish_reason") or "") for choice in choices]
        return Usage(
            _count(counts.get("prompt_tokens")),
            _count(counts.get("completion_tokens")),
            BLOCKED if BLOCKED in reasons else reasons[0],
            bool(document.get("error")),
        )
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
        return Usage()


def measure(
    request: bytes, usage: Usage, pace: Pace | None, per_token: tuple[float, float] | None
) -> Measures:
    """All measures of one answered request. `per_token` is dollars of a token in and of a token out."""
    tokens_in, tokens_out = usage.tokens_in, usage.tokens_out
    itl_ms = None
    if pace is not None and tokens_out is not None and tokens_out > 1:
        itl_ms = (pace.last_ms - pace.first_ms) / (tokens_out - 1)
    cost_usd = None
    if per_token is not None and tokens_in is not None:
        cost_usd = tokens_in * per_token[0] + (tokens_out or 0) * per_token[1]
    ttft_ms = pace.first_ms if pace is not None else None
    return Measures(
        ttft_ms,
        itl_ms,
        tokens_in,
        tokens_out,
        cost_usd,
        usage.finish_reason,
        usage.broken,
        stratum_of(request),
    )


def stratum_of(request: bytes) -> str:
    """Requests that are alike in work, by what was asked alone: `stream/prompt/answer`.

    Never by the answer: how long a version's answers are is the version's doing, and comparing only
    answers of equal length would hide that. The prompt counts in bytes, because tokens are the
    version's tokenizer's doing too; both in powers of four, the answer by the `max_tokens` asked for.
    """
    try:
        document: Any = json.loads(request)
        most = document.get("max_completion_tokens") or document.get("max_tokens")
        mode = "stream" if document.get("stream") is True else "whole"
    except (ValueError, AttributeError, RecursionError):
        return ""
    asked = f"a{_power(most)}" if isinstance(most, int) and most > 0 else "a-"
    return f"{mode}/p{_power(len(request))}/{asked}"


def _power(size: int) -> int:
    return math.ceil(math.log(max(size, 1), 4))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _is_usage(data: bytes) -> bool:
    try:
        document: Any = json.loads(data)
        return document.get("choices") == [] and bool(document.get("usage"))
    except (ValueError, AttributeError, RecursionError):
        return False


def _joined(body: bytes) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in _events(body):
        joined |= {
            name: event[name] for name in ("id", "model", "created", "usage", "error") if event.get(name)
        }
        for choice in _objects(event.get("choices")):
            _add(choices.setdefault(_index(choice), {}), choice)
    joined["choices"] = [{"index": index, **choice} for index, choice in sorted(choices.items())]
    ends = [choice.get("finish_reason") for choice in joined["choices"]]
    if not joined.get("error") and not (ends and all(ends)):
        joined["error"] = {"message": _BROKE_OFF}
    return joined


def _objects(listed: object) -> Iterator[Mapping[str, Any]]:
    for one in cast("list[object]", listed) if isinstance(listed, list) else ():
        if isinstance(one, dict):
            yield cast("dict[str, Any]", one)


def _index(part: Mapping[str, Any]) -> int:
    return _count(part.get("index")) or 0


def _events(body: bytes) -> Iterator[Mapping[str, Any]]:
    for line in body.split(b"\n"):
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if not data or data == _DONE:
            continue
        try:
            event: object = json.loads(data)
        except (ValueError, RecursionError):
            continue  # the last event of a stream that was cut off
        if isinstance(event, dict):
            yield cast("dict[str, Any]", event)


def _add(whole: dict[str, Any], choice: Mapping[str, Any]) -> None:
    if choice.get("finish_reason"):
        whole["finish_reason"] = choice["finish_reason"]
    if isinstance(choice.get("text"), str):
        whole["text"] = whole.get("text", "") + choice["text"]
    delta: Any = choice.get("delta")
    if not isinstance(delta, dict):
        return
    message: dict[str, Any] = whole.setdefault("message", {})
    for name, value in cast("dict[str, Any]", delta).items():
        if name == "tool_calls" and isinstance(value, list):
            _add_calls(message.setdefault("tool_calls", []), _objects(value))
        elif isinstance(value, str) and name != "role":
            message[name] = (message.get(name) or "") + value
        elif value is not None:
            message[name] = value


def _add_calls(calls: list[dict[str, Any]], parts: Iterator[Mapping[str, Any]]) -> None:
    for part in parts:
        index = _index(part)
        while len(calls) <= index:
            calls.append({"function": {"name": "", "arguments": ""}})
        call = calls[index]
        call |= {name: part[name] for name in ("id", "type") if part.get(name)}
        for name, value in (part.get("function") or {}).items():
            call["function"][name] = call["function"].get(name, "") + (value or "")
