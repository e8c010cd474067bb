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
_TEXT: dict[str, Any] = {"model": NAME, "prompt": "Hello", "max_tokens": 5, "temperature": 0}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat", ASKED),
    "stream": ("chat", {**ASKED, "stream": True}),
    "stream with usage": ("chat", {**ASKED, "stream": True, "stream_options": {"include_usage": True}}),
    "text": ("text", _TEXT),
    "text stream": ("text", {**_TEXT, "stream": True}),
    "tools": ("chat", {**ASKED, "tools": [TOOL], "tool_choice": "auto"}),
    "tools stream": ("chat", {**ASKED, "tools": [TOOL], "tool_choice": "auto", "stream": True}),
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


def outcomes(url: str, key: str) -> dict[str, Any]:
    """By the synchronous client; errors by their class, status and body."""
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
        kinds = {"chat": client.chat.completions, "text": client.completions}
        found: dict[str, Any] = {"models": [model.id for model in client.models.list()]}
        for name, (kind, asked) in REQUESTS.items():
            try:
                got: Any = kinds[kind].create(**asked)
            except openai.APIStatusError as error:
                found[name] = (type(error).__name__, error.status_code, plain(error.body))
                continue
            is_stream = isinstance(got, openai.Stream)
            found[name] = (
                [plain(chunk.model_dump()) for chunk in got] if is_stream else plain(got.model_dump())
            )
        return found


def outcomes_async(url: str, key: str) -> dict[str, Any]:
    """By the asynchronous client, all at once."""

    async def run() -> dict[str, Any]:
        async with openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=120) as client:
            kinds = {"chat": client.chat.completions, "text": client.completions}

            async def one(kind: str, asked: dict[str, Any]) -> Any:
                try:
                    got: Any = await kinds[kind].create(**asked)
                except openai.APIStatusError as error:
                    return type(error).__name__, error.status_code, plain(error.body)
                if isinstance(got, openai.AsyncStream):
                    return [plain(chunk.model_dump()) async for chunk in got]
                return plain(got.model_dump())

            names = [name for name in REQUESTS if "stream" in name or "bad" in name or "unknown" in name]
            found = await asyncio.gather(*(one(*REQUESTS[name]) for name in names))
            return dict(zip(names, found, strict=True))

    return asyncio.run(run())
