"""The capture for language models: what `CaptureMiddleware` records, and the measures of each request.

    python -m vllm.entrypoints.openai.api_server ... \
        --middleware serving.capture.generation.GenerationCapture      with INTERLOCK_CAPTURE set

Also the door of the process: `/health` says 503 until the launcher has warmed the engine up and
again once it drains, by a file that is there or not. Standard library only.
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

from serving.capture.middleware import REPLAY_HEADER, ASGIApp, Message, Receive, Scope, Send
from serving.capture.recorder import CaptureConfig, Recorded, Recorder
from serving.capture.streams import Pace, asking_for_usage, without_usage

_HEALTH = "/health"
_TAIL_EVENTS = 8
"""Kept of every stream, however long: how it ended is among them."""


class GenerationCapture:
    """Wraps an OpenAI-compatible app. `ready_file` of the config opens and shuts its `/health`."""

    def __init__(self, app: ASGIApp, config: CaptureConfig | None = None) -> None:
        self.app = app
        self.recorder = Recorder(config or CaptureConfig.from_environment(os.environ))
        self._paths = self.recorder.config.paths
        self._version = self.recorder.config.version.encode()
        self._bytes_max = self.recorder.config.body_bytes_max
        self._ready: Path | None = self.recorder.config.ready_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        if scope["type"] == "lifespan":
            try:
                await self.app(scope, receive, send)
            finally:
                self.recorder.close()
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] in self._paths:
            await self._recorded(scope, receive, send)
        elif scope["path"] == _HEALTH and self._ready is not None and not self._ready.exists():
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self.app(scope, receive, send)

    async def _recorded(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived, started = time.time(), time.perf_counter()
        body = await _whole(receive)
        if body is None:
            return  # gone before it had said what it wants
        tap = _StreamTap(body, receive, send, started, self._bytes_max)
        headers = dict(scope["headers"])
        try:
            await self.app(tap.scope(scope), tap.receive, tap.send)
        except Exception:
            tap.fail()
            raise
        finally:
            self.recorder.offer(
                Recorded(
                    arrived,
                    headers.get(b"x-request-id", b""),
                    headers.get(b"x-interlock-version") or self._version,
                    headers.get(b"x-interlock-tenant", b""),
                    headers.get(b"x-interlock-user", b""),
                    scope["path"],
                    headers.get(b"content-type", b""),
                    body,
                    tap.status if tap.ended or tap.status >= 500 else 0,
                    b"".join(tap.responses),
                    (time.perf_counter() - started) * 1000,
                    tap.truncated,
                    REPLAY_HEADER in headers,
                    tap.pace,
                    tap.usage,
                    b"".join(tap.tail) if tap.truncated else b"",
                )
            )


async def _whole(receive: Receive) -> bytes | None:
    """The request's body; None where the client went away first."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


class _StreamTap:
    """One exchange: hands the body on, watches the events pass, keeps references up to a size."""

    __slots__ = (
        "_asked",
        "_bytes_left",
        "_first_s",
        "_is_stream",
        "_last_s",
        "_receive",
        "_send",
        "_started",
        "_told",
        "ended",
        "is_gone",
        "responses",
        "status",
        "tail",
        "truncated",
        "usage",
    )

    def __init__(self, body: bytes, receive: Receive, send: Send, started: float, bytes_max: int) -> None:
        self._asked = asking_for_usage(body)
        self._told: bytes | None = self._asked or body
        self._receive = receive
        self._send = send
        self._started = started
        self._bytes_left = bytes_max - len(body)
        self._first_s = self._last_s = 0.0
        self._is_stream = False
        self.responses: list[bytes] = []
        self.tail: deque[bytes] = deque(maxlen=_TAIL_EVENTS)
        self.usage = b""
        self.status = 0
        self.ended = False
        self.is_gone = False
        self.truncated = self._bytes_left < 0

    @property
    def pace(self) -> Pace | None:
        """When events passed; None for an answer that was no stream, or had none."""
        if not self._first_s:
            return None
        return Pace((self._first_s - self._started) * 1000, (self._last_s - self._started) * 1000)

    def scope(self, scope: Scope) -> Scope:
        """The scope with the length of the body as it is handed on."""
        if self._asked is None:
            return scope
        length = str(len(self._asked)).encode()
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        return {**scope, "headers": [*kept, (b"content-length", length)]}

    async def receive(self) -> Message:
        """The body at once, then whatever the client does."""
        if self._told is not None:
            body, self._told = self._told, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        self.is_gone = self.is_gone or message["type"] == "http.disconnect"
        return message

    def fail(self) -> None:
        """The app raised: the server answers 500, or breaks an answer off that had begun."""
        if not (self.ended or self.is_gone):
            self.status = 500

    async def send(self, message: Message) -> None:
        """Pass one message of the response on, without the event that only we asked for."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_stream = any(
                name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                for name, value in message["headers"]
            )
        elif message["type"] == "http.response.body":
            body, more = message.get("body", b""), message.get("more_body", False)
            if body:
                body = self._watch(body)
                if not body and more:
                    return  # an empty chunk would end the answer
                message = {"type": "http.response.body", "body": body, "more_body": more}
            self.ended = not more
        await self._send(message)

    def _watch(self, body: bytes) -> bytes:
        """Note an event's time and keep it; returns what the client gets of it."""
        self._bytes_left -= len(body)
        if self._bytes_left < 0:
            self.truncated = True
        else:
            self.responses.append(body)
        if not self._is_stream:
            return body
        self.tail.append(body)
        passed, usage = without_usage(body)
        self.usage = usage or self.usage
        if not usage and body[:12] != b"data: [DONE]":
            self._last_s = time.perf_counter()
            self._first_s = self._first_s or self._last_s
        return passed if self._asked is not None else body
