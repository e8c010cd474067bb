"""Bodies of OpenAI-compatible APIs, as far as releases read them: the text, why it ended, tokens, vectors.

Reads whole answers and recorded streams (server-sent events) alike. Standard library only.
"""

from __future__ import annotations

import json
import struct
from binascii import a2b_base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
PROMPT_VARIABLES = "prompt_variables"
"""The request's field with the values of the prompt's variables; it never reaches the model."""
TEXT_PATHS = frozenset({CHAT_PATH, COMPLETIONS_PATH})


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `text` holds a tool call's name and arguments where there is no content.

    Token counts are None where the server did not say them.
    """

    text: str
    finish_reason: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None


def read_completion(body: bytes) -> Completion | None:
    """The answer in a response body, streamed or not, the first of several; None where there is none."""
    text = body.decode(errors="replace").lstrip()
    try:
        if text.startswith("{"):
            return _whole(json.loads(text))
        events = [json.loads(data) for data in _events(text)]
    except (ValueError, RecursionError):
        return None
    return _joined([event for event in events if isinstance(event, dict)]) if events else None


def read_prompt(body: bytes) -> str | None:
    """What was asked, as a text for people: chat messages one a line with their role; None for no prompt."""
    fields = _object(body)
    if fields is None:
        return None
    if isinstance(fields.get("messages"), list):
        said = _objects(fields["messages"])
        return _text("\n".join(f"{one.get('role', '')}: {content_text(one.get('content'))}" for one in said))
    prompt = fields.get("prompt")
    return _text(prompt) if isinstance(prompt, str) else None


def unstreamed(body: bytes, *, one_token: bool = False) -> bytes | None:
    """The same request for a whole answer, or for a single token of one; None for what is no request."""
    fields = _object(body)
    if fields is None:
        return None
    dropped = {"stream", "stream_options"}
    if one_token:
        dropped |= {"max_completion_tokens", "n", "best_of", "min_tokens"}
    kept = {name: value for name, value in fields.items() if name not in dropped}
    return json.dumps({**kept, "max_tokens": 1} if one_token else kept).encode()


def read_embeddings(body: bytes) -> list[tuple[float, ...]] | None:
    """The vectors in a response body in the order of its inputs, written as numbers or as little-endian
    float32 in base64; None where there are none."""
    try:
        rows = sorted(json.loads(body)["data"], key=lambda row: row["index"])
        found = [_vector(row["embedding"]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError, struct.error):
        return None
    return found or None


def _vector(written: str | list[float]) -> tuple[float, ...]:
    if isinstance(written, str):
        data = a2b_base64(written)
        return struct.unpack(f"<{len(data) // 4}f", data)
    return tuple(float(number) for number in written)


def content_text(content: object) -> str:
    """A message's content as text: itself, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    return ""


def _object(body: bytes) -> Mapping[str, Any] | None:
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return cast("Mapping[str, Any]", document) if isinstance(document, dict) else None


def _fields(value: object) -> Mapping[str, Any]:
    """An object's fields; none of what is no object."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _objects(value: object) -> list[Mapping[str, Any]]:
    """The objects of a list; anything else in it is passed over."""
    listed = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("Mapping[str, Any]", one) for one in listed if isinstance(one, dict)]


def _whole(document: Mapping[str, Any]) -> Completion | None:
    choices = _objects(document.get("choices"))
    if not choices:
        return None
    choice = choices[0]
    message = _fields(choice.get("message"))
    text = content_text(message.get("content")) or str(choice.get("text") or "")
    text = text or _calls(message.get("tool_calls"))
    return _completion(text, str(choice.get("finish_reason") or ""), document.get("usage"))


def _joined(events: list[Mapping[str, Any]]) -> Completion:
    texts: list[str] = []
    finish, usage = "", None
    for event in events:
        usage = event.get("usage") or usage
        for choice in _objects(event.get("choices")):
            if choice.get("index", 0) != 0:
                continue  # one of several answers: the first stands for them, as in a whole body
            delta = _fields(choice.get("delta"))
            texts.append(str(delta.get("content") or choice.get("text") or _calls(delta.get("tool_calls"))))
            finish = str(choice.get("finish_reason") or finish)
    return _completion("".join(texts), finish, usage)


def _completion(text: str, finish_reason: str, usage: object) -> Completion:
    counts = _fields(usage)
    return Completion(
        _text(text), finish_reason, counts.get("prompt_tokens"), counts.get("completion_tokens")
    )


def _text(text: str) -> str:
    """With a question mark for half an emoji (a lone surrogate): it has no bytes in any file."""
    return text.encode(errors="replace").decode()


def _calls(calls: object) -> str:
    functions = [_fields(call.get("function")) for call in _objects(calls)]
    return "".join(f"{one.get('name') or ''}{one.get('arguments') or ''}" for one in functions)


def _events(text: str) -> Iterator[str]:
    for line in text.splitlines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data and data != "[DONE]":
            yield data
