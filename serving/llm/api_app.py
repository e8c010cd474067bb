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
from typing import Any, cast

from serving.capture.middleware import Receive, Scope, Send
from serving.llm.asgi import PATHS, Answer, hand_on, lifespan, read_body, reply, unless_gone
from serving.llm.provider_errors import ProviderTrouble, openai_error

logger = logging.getLogger("interlock.llm")


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
            await lifespan(receive, send)
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
            await reply(send, 503 if self.draining else 200, {})
        elif path == "/v1/models":
            model = {
                "id": self._served_name,
                "object": "model",
                "created": self._created,
                "owned_by": "interlock",
            }
            await reply(send, 200, {"object": "list", "data": [model]})
        elif path == "/metrics":  # under vLLM's names; a provider's queue and cache are not ours to see
            values = {
                "num_requests_running": self.in_flight,
                "num_requests_waiting": 0,
                "kv_cache_usage_perc": 0,
            }
            label = f'{{model_name="{self._served_name}"}}'
            text = "".join(f"vllm:{name}{label} {value}\n" for name, value in values.items())
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": text.encode()})
        else:
            await reply(send, 404, openai_error("Not Found", "not_found_error", 404))

    async def _pass_on(self, path: str, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        try:
            document: object = json.loads(body)
        except (ValueError, RecursionError):
            await reply(send, 400, openai_error("The body is not JSON.", "invalid_request_error", 400))
            return
        if not isinstance(document, dict):
            await reply(send, 400, openai_error("The body is no JSON object.", "invalid_request_error", 400))
            return
        fields = cast("dict[str, Any]", document)
        asked = fields.get("model", self._served_name)
        if asked != self._served_name:
            message = f"The model `{asked}` does not exist."
            await reply(send, 404, openai_error(message, "NotFoundError", 404))
            return
        await unless_gone(receive, self._answer(path, {**fields, "model": self._model}, send))

    async def _answer(self, path: str, fields: Mapping[str, Any], send: Send) -> None:
        """Under the name that the client knows."""
        try:
            answer = await self._ask(path, fields)
        except ProviderTrouble as trouble:
            logger.warning("%s: %s", path, trouble)
            await reply(send, trouble.status, trouble.document, retry_after=trouble.retry_after)
            return
        try:
            await hand_on(answer, send, self._renamed)
        finally:
            await answer.close()

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
        return prefix + json.dumps(named, separators=(",", ":")).encode()
