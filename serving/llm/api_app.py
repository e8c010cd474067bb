"""The replica of a model that a provider hosts: OpenAI's API in, the provider's API out.

Requests and answers pass unchanged but for two things: the model's name (clients ask for the
endpoint's, the provider hears its own, and back) and the credential, which only this process has.
Asked through the official `openai` client's transport, whose raw answers are handed on, so that
streaming, tools and everything that comes later behave as at the provider itself.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

from serving.capture.middleware import Message, Receive, Scope, Send
from serving.llm.provider_errors import ProviderTrouble, openai_error

logger = logging.getLogger("interlock.llm")

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_JSON = (b"content-type", b"application/json")


class Answer(Protocol):
    """A provider's answer whose headers are there."""

    status: int
    content_type: str

    def chunks(self) -> Any:
        """The body as an asynchronous iterator of bytes, as they come."""
        ...

    async def close(self) -> None:
        """Stop: the provider then stops generating."""
        ...


Ask = Callable[[str, Mapping[str, Any]], Awaitable[Answer]]
"""Sends one request (path, body) to the provider. Raises `ProviderTrouble`."""


class ApiApp:
    """`/v1/...`, `/health`, `/metrics` of one API-hosted replica."""

    def __init__(self, ask: Ask, *, served_name: str, model: str) -> None:
        self._ask = ask
        self._served_name = served_name
        self._model = model
        self._created = int(time.time())
        self.in_flight = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS:
            self.in_flight += 1
            try:
                await self._pass_on(scope["path"], receive, send)
            finally:
                self.in_flight -= 1
        elif scope["type"] == "http":
            await self._tell(scope["path"], send)

    async def _tell(self, path: str, send: Send) -> None:
        if path == "/health":
            await _reply(send, 503 if self.draining else 200, {})
        elif path == "/v1/models":
            model = {
                "id": self._served_name,
                "object": "model",
                "created": self._created,
                "owned_by": "interlock",
            }
            await _reply(send, 200, {"object": "list", "data": [model]})
        elif (
            path == "/metrics"
        ):  # the engine's gauges under vLLM's names; a provider's queue is not ours to see
            text = f'vllm:num_requests_running{{model_name="{self._served_name}"}} {self.in_flight}\n'
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": text.encode()})
        else:
            await _reply(send, 404, openai_error("Not Found", "not_found_error", 404))

    async def _pass_on(self, path: str, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        try:
            document: object = json.loads(body)
        except (ValueError, RecursionError):
            await _reply(send, 400, openai_error("The body is not JSON.", "invalid_request_error", 400))
            return
        if not isinstance(document, dict):
            await _reply(send, 400, openai_error("The body is no JSON object.", "invalid_request_error", 400))
            return
        fields = cast("dict[str, Any]", document)
        asked = fields.get("model")
        if asked != self._served_name:
            message = f"The model `{asked}` does not exist."
            await _reply(send, 404, openai_error(message, "NotFoundError", 404))
            return
        try:
            answer = await self._ask(path, {**fields, "model": self._model})
        except ProviderTrouble as trouble:
            logger.warning("%s: %s", path, trouble)
            await _reply(send, trouble.status, trouble.document, retry_after=trouble.retry_after)
            return
        try:
            await self._hand_on(answer, receive, send)
        finally:
            await answer.close()

    async def _hand_on(self, answer: Answer, receive: Receive, send: Send) -> None:
        """The answer as it comes, under the name that the client knows. Ends with the client."""
        import asyncio

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def to_the_end() -> None:
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
                        passed = self._renamed(event) + b"\n\n"
                        await send({"type": "http.response.body", "body": passed, "more_body": True})
            last = self._renamed(rest) if rest else b""
            await send({"type": "http.response.body", "body": last, "more_body": False})

        gone = asyncio.ensure_future(until_gone())
        sent = asyncio.ensure_future(to_the_end())
        try:
            await asyncio.wait({gone, sent}, return_when=asyncio.FIRST_COMPLETED)
            if sent.done():
                sent.result()
        finally:
            for task in (gone, sent):
                task.cancel()
            await asyncio.gather(gone, sent, return_exceptions=True)

    def _renamed(self, data: bytes) -> bytes:
        """An event or a document with the endpoint's name in place of the provider's model."""
        prefix = b"data: " if data.startswith(b"data:") else b""
        text = data.removeprefix(b"data:").strip() if prefix else data
        try:
            document: object = json.loads(text)
        except (ValueError, RecursionError):
            return data
        if not isinstance(document, dict) or "model" not in document:
            return data
        named = {**cast("dict[str, Any]", document), "model": self._served_name}
        return prefix + json.dumps(named, ensure_ascii=False, separators=(",", ":")).encode()


async def _body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    while True:
        message: Message = await receive()
        chunks.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(chunks)


async def _reply(
    send: Send, status: int, document: Mapping[str, Any], *, retry_after: str | None = None
) -> None:
    body = json.dumps(document).encode()
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    if retry_after:
        headers.append((b"retry-after", retry_after.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
