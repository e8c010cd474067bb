"""What stands before a vLLM engine where prompts or guards do: passes on, changes nothing itself.

Requests, answers, errors and the list of models are the engine's own, byte for byte; what clients get
besides is the work of the layers around this app.
"""

from __future__ import annotations

import logging

import httpx

from serving.capture.middleware import Receive, Scope, Send
from serving.llm.asgi import PATHS, HttpAnswer, hand_on, lifespan, read_body, reply, unless_gone
from serving.llm.provider_errors import ProviderTrouble, engine_lost, openai_error

logger = logging.getLogger("interlock.llm")

_HEALTH_TIMEOUT_S = 2.0
_READ_TIMEOUT_S = 10.0
_KEPT_S = 2.0
"""Shorter than vLLM keeps an idle connection: one that it is about to close is never used."""


class EngineClient:
    """One engine on this machine. Nothing is sent twice: a generation asked for twice is paid for twice."""

    def __init__(self, host: str, port: int) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"http://{host}:{port}",
            timeout=httpx.Timeout(
                None, connect=_HEALTH_TIMEOUT_S
            ),  # how long answers may take the gateway knows
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_S),
            trust_env=False,
        )

    async def ask(self, path: str, body: bytes) -> HttpAnswer:
        """Send; returns once the answer has begun. Raises `ProviderTrouble` where none does."""
        request = self._client.build_request(
            "POST", path, content=body, headers={"content-type": "application/json"}
        )
        try:
            return HttpAnswer(await self._client.send(request, stream=True))
        except httpx.HTTPError as error:
            raise engine_lost(type(error).__name__) from error

    async def get(self, path: str, *, timeout_s: float = _READ_TIMEOUT_S) -> httpx.Response | None:
        """A small document; None where the engine does not answer."""
        try:
            return await self._client.get(path, timeout=timeout_s)
        except httpx.HTTPError:
            return None

    async def is_healthy(self) -> bool:
        """Whether the engine wants requests."""
        found = await self.get("/health", timeout_s=_HEALTH_TIMEOUT_S)
        return found is not None and found.is_success

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class FrontApp:
    """`/v1/...`, `/health`, `/metrics` of one front. Healthy once `ready` is set, while its engine is."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self.in_flight = 0
        self.draining = False
        self.ready = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS:
            self.in_flight += 1
            try:
                body = await read_body(receive)
                if body is not None:
                    await unless_gone(receive, self._answer(scope["path"], body, send))
            finally:
                self.in_flight -= 1
        elif scope["type"] == "http":
            await self._tell(scope["path"], send)

    async def _answer(self, path: str, body: bytes, send: Send) -> None:
        try:
            answer = await self._engine.ask(path, body)
        except ProviderTrouble as trouble:
            logger.warning("%s: %s", path, trouble)
            await reply(send, trouble.status, trouble.document)
            return
        try:
            await hand_on(answer, send)
        finally:
            await answer.close()

    async def _tell(self, path: str, send: Send) -> None:
        if path == "/health":
            healthy = self.ready and not self.draining and await self._engine.is_healthy()
            await reply(send, 200 if healthy else 503, {})
            return
        if path not in ("/v1/models", "/metrics"):
            await reply(send, 404, openai_error("Not Found", "NotFoundError", 404))
            return
        found = await self._engine.get(path)
        if found is None:
            lost = engine_lost("no answer")
            await reply(send, lost.status, lost.document)
            return
        headers = [(b"content-type", found.headers.get("content-type", "text/plain").encode())]
        await send({"type": "http.response.start", "status": found.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": found.content})
