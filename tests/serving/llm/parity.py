"""What the official client sees of everything it may ask: the same from two servers, or they differ."""

from __future__ import annotations

import asyncio
from typing import Any

import openai

from tests.serving.llm.conftest import NAME

ASKED: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "max_tokens": 12,
    "temperature": 0,
}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
LOOK_UP = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {"order": {"type": "string", "enum": ["A17", "B4"]}},
            "required": ["order"],
            "additionalProperties": False,
        },
    },
}
_CALL: dict[str, Any] = {**ASKED, "max_tokens": 96, "tools": [LOOK_UP, TOOL]}
_NAMED = {"type": "function", "function": {"name": "look_up"}}
_TEXT: dict[str, Any] = {"model": NAME, "prompt": "Hello", "max_tokens": 5, "temperature": 0}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat", ASKED),
    "stream": ("chat", {**ASKED, "stream": True}),
    "stream with usage": ("chat", {**ASKED, "stream": True, "stream_options": {"include_usage": True}}),
    "text": ("text", _TEXT),
    "text stream": ("text", {**_TEXT, "stream": True}),
    "tools": ("chat", {**ASKED, "tools": [TOOL], "tool_choice": "auto"}),
    "tools stream": ("chat", {**ASKED, "tools": [TOOL], "tool_choice": "auto", "stream": True}),
    "tool required": ("chat", {**_CALL, "tool_choice": "required"}),
    "tool required stream": ("chat", {**_CALL, "tool_choice": "required", "stream": True}),
    "tool named": ("chat", {**_CALL, "tool_choice": _NAMED}),
    "tool named stream": ("chat", {**_CALL, "tool_choice": _NAMED, "stream": True}),
    "bad tool": ("chat", {**_CALL, "tools": None, "tool_choice": _NAMED}),
    "vectors": ("vectors", {"model": NAME, "input": ["a parcel", "an order"]}),
    "vectors as numbers": ("vectors", {"model": NAME, "input": "a parcel", "encoding_format": "float"}),
    "vectors of unknown model": ("vectors", {"model": "nobody", "input": "a parcel"}),
    "several": ("chat", {**ASKED, "n": 2}),
    "several stream": ("chat", {**ASKED, "n": 2, "stream": True}),
    "unknown model": ("chat", {**ASKED, "model": "nobody"}),
    "bad type": ("chat", {**ASKED, "temperature": "hot"}),
    "out of range": ("chat", {**ASKED, "top_p": 7}),
    "too long": ("chat", {**ASKED, "max_tokens": 100_000}),
    "no messages": ("chat", {**ASKED, "messages": []}),
    "bad stream": ("chat", {**ASKED, "temperature": "hot", "stream": True}),
}


def plain(document: Any) -> Any:
    """An answer without what differs between two of the same: ids and times."""
    if isinstance(document, dict):
        dropped = {"id", "created", "system_fingerprint", "prompt_token_ids", "token_ids"}
        return {name: plain(value) for name, value in document.items() if name not in dropped}
    return [plain(one) for one in document] if isinstance(document, list) else document


_GROW = {"content", "text", "arguments", "reasoning"}


def whole(found: dict[str, Any]) -> dict[str, Any]:
    """Outcomes with every stream joined."""
    streams = {name for name, one in found.items() if isinstance(one, list) and isinstance(one[0], dict)}
    return {name: joined(one) if name in streams else one for name, one in found.items()}


def joined(chunks: list[Any]) -> list[Any]:
    """A stream's chunks, those of one answer as one: an engine that is ahead sends two tokens at once."""
    kept: list[Any] = []
    answers: dict[int, Any] = {}
    for chunk in chunks:
        index = chunk["choices"][0]["index"] if chunk["choices"] else None
        if index is None or index not in answers:
            kept.append(chunk)
        if index is not None:
            join(answers.setdefault(index, chunk), chunk)
    return kept


def join(whole: Any, part: Any) -> None:
    """Add a later part of an answer to what came before it."""
    if whole is part:
        return
    for name, value in part.items():
        if isinstance(value, dict) and isinstance(whole.get(name), dict):
            join(whole[name], value)
        elif name == "choices":
            join(whole[name][0], value[0])
        elif name == "tool_calls" and value and whole.get(name):
            for call in value:
                before = next((one for one in whole[name] if one["index"] == call["index"]), None)
                whole[name].append(call) if before is None else join(before, call)
        elif name in _GROW:
            whole[name] = (whole.get(name) or "") + (value or "")
        elif value is not None or name not in whole:
            whole[name] = value


def refused(error: openai.APIError) -> Any:
    """An error as the client shows it; one that ends a stream has no status."""
    return type(error).__name__, getattr(error, "status_code", None), plain(error.body)


def outcomes(url: str, key: str) -> dict[str, Any]:
    """By the synchronous client; errors by their class, status and body."""
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
        kinds = {"chat": client.chat.completions, "text": client.completions, "vectors": client.embeddings}
        found: dict[str, Any] = {"models": [model.id for model in client.models.list()]}
        for name, (kind, asked) in REQUESTS.items():
            try:
                got: Any = kinds[kind].create(**asked)
                is_stream = isinstance(got, openai.Stream)
                found[name] = (
                    [plain(chunk.model_dump()) for chunk in got] if is_stream else plain(got.model_dump())
                )
            except openai.APIError as error:
                found[name] = refused(error)
        return found


def outcomes_async(url: str, key: str) -> dict[str, Any]:
    """By the asynchronous client, all at once."""

    async def run() -> dict[str, Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
            kinds = {
                "chat": client.chat.completions,
                "text": client.completions,
                "vectors": client.embeddings,
            }

            async def one(kind: str, asked: dict[str, Any]) -> Any:
                try:
                    got: Any = await kinds[kind].create(**asked)
                    if isinstance(got, openai.AsyncStream):
                        return [plain(chunk.model_dump()) async for chunk in got]
                    return plain(got.model_dump())
                except openai.APIError as error:
                    return refused(error)

            words = ("stream", "bad", "unknown", "tool", "vectors")
            names = [name for name in REQUESTS if any(word in name for word in words)]
            found = await asyncio.gather(*(one(*REQUESTS[name]) for name in names))
            return dict(zip(names, found, strict=True))

    return asyncio.run(run())


def called(outcome: Any) -> tuple[str, str, str]:
    """Name and arguments of the tool call that an answer makes, and why it ended."""
    if not isinstance(outcome, list):
        (choice,) = outcome["choices"]
        calls = choice["message"]["tool_calls"]
        return calls[0]["function"]["name"], calls[0]["function"]["arguments"], choice["finish_reason"]
    choices = [choice for chunk in outcome for choice in chunk["choices"]]
    parts = [one["function"] for choice in choices for one in choice["delta"]["tool_calls"] or ()]
    name = "".join(part["name"] or "" for part in parts)
    return name, "".join(part["arguments"] or "" for part in parts), choices[-1]["finish_reason"]
