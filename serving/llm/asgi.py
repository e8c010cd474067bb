"""What the apps before an engine or a provider share: bodies, refusals, answers passed on as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from serving.capture.middleware import Message, Receive, Scope, Send

if TYPE_CHECKING:
    import httpx

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_JSON = (b"content-type", b"application/json")


class Answer(Protocol):
    """An upstream's answer whose headers are there."""

    status: int
    content_type: str

    def chunks(self) -> Any:
        """The body as an asynchronous iterator of bytes, as they come."""
        ...

    async def close(self) -> None:
        """Stop: the upstream then stops generating."""
        ...


class HttpAnswer:
    """An `Answer` that came over HTTP. An upstream that breaks off ends the connection, as vLLM would."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.content_type = response.headers.get("content-type", "application/json")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        async for chunk in self._response.aiter_bytes():
            yield chunk

    async def close(self) -> None:
        """Let the connection go; unfinished, the upstream sees that nobody listens."""
        await self._response.aclose()


async def read_body(receive: Receive) -> bytes | None:
    """The request's whole body; None where the client went away first."""
    chunks: list[bytes] = []
    while True:
        message: Message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def with_body(scope: Scope, body: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """A request with another body, for the app behind: its scope and what it receives."""
    kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    headers = [*kept, (b"content-length", str(len(body)).encode())]
    told = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_told() -> Message:
        return told.pop() if told else await receive()

    return {**scope, "headers": headers}, receive_told


async def reply(
    send: Send, status: int, document: Mapping[str, Any], *, retry_after: str | None = None
) -> None:
    """One whole JSON answer."""
    body = json.dumps(document).encode()
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    if retry_after:
        headers.append((b"retry-after", retry_after.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def unless_gone(receive: Receive, answering: Coroutine[Any, Any, None]) -> None:
    """Answer, but stop when the client leaves. Raises what the answering raises."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(until_gone())
    answered = asyncio.ensure_future(answering)
    try:
        await asyncio.wait({gone, answered}, return_when=asyncio.FIRST_COMPLETED)
        if answered.done():
            answered.result()
    finally:
        for task in (gone, answered):
            task.cancel()
        await asyncio.gather(gone, answered, return_exceptions=True)


async def hand_on(answer: Answer, send: Send, passed: Callable[[bytes], bytes] = bytes) -> None:
    """The answer as it comes; `passed` makes of an event or a whole document what the client gets."""
    is_stream = answer.content_type.startswith("text/event-stream")
    headers = [(b"content-type", answer.content_type.encode())]
    if is_stream:
        headers.append((b"cache-control", b"no-cache"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    rest = b""
    async for chunk in answer.chunks():
        rest += chunk
        if is_stream:  # whole events only, so that the capture sees each by itself
            *events, rest = rest.replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                await send({"type": "http.response.body", "body": passed(event) + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": passed(rest) if rest else b"", "more_body": False})


async def lifespan(receive: Receive, send: Send) -> None:
    """Nothing to start, nothing to stop."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
