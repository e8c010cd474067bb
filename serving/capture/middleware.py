"""The capture middleware: pure ASGI, wraps any model server, adds microseconds.

    CaptureMiddleware(app, config)                                  in our own replica
    vllm serve ... --middleware serving.capture.middleware.CaptureMiddleware
                                                                    with INTERLOCK_CAPTURE set

It only keeps references to the bytes that pass through. Decoding, redaction and writing happen
in the recorder's thread. Standard library only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.capture.recorder import CaptureConfig, Recorded, Recorder

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

REPLAY_HEADER = b"x-interlock-replay"
"""Marks a copy that the shadow sends: never spooled, and marked in the durable capture."""


class CaptureMiddleware:
    """Records the exchanges of the configured paths; everything else passes untouched."""

    def __init__(
        self, app: ASGIApp, config: CaptureConfig | None = None, *, recorder: Recorder | None = None
    ) -> None:
        self.app = app
        self.recorder = recorder or Recorder(config or CaptureConfig.from_environment(os.environ))
        self._paths = self.recorder.config.paths
        self._version = self.recorder.config.version.encode()
        self._bytes_max = self.recorder.config.body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        kind = scope["type"]
        if kind == "http" and scope["method"] == "POST" and scope["path"] in self._paths:
            await self._recorded(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _recorded(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived, started = time.time(), time.perf_counter()
        tap = _Tap(receive, send, self._bytes_max)
        try:
            await self.app(scope, tap.receive, tap.send)
        except Exception:
            tap.fail()
            raise
        finally:
            headers = dict(scope["headers"])
            self.recorder.offer(
                Recorded(
                    arrived,
                    headers.get(b"x-request-id", b""),
                    headers.get(b"x-interlock-version") or self._version,
                    headers.get(b"x-interlock-tenant") or headers.get(b"x-tenant", b""),
                    headers.get(b"x-interlock-user", b""),
                    scope["path"],
                    headers.get(b"content-type", b""),
                    tap.request if len(tap.requests) < 2 else b"".join(tap.requests),
                    tap.status if tap.ended or tap.status >= 500 else 0,
                    tap.response if len(tap.responses) < 2 else b"".join(tap.responses),
                    (time.perf_counter() - started) * 1000,
                    tap.truncated,
                    REPLAY_HEADER in headers,
                )
            )

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            self.recorder.close()


class _Tap:
    """Keeps references to the bodies of one exchange while they pass, up to a size."""

    __slots__ = (
        "_bytes_left",
        "_receive",
        "_send",
        "ended",
        "is_gone",
        "requests",
        "responses",
        "status",
        "truncated",
    )

    def __init__(self, receive: Receive, send: Send, bytes_max: int) -> None:
        self._receive = receive
        self._send = send
        self._bytes_left = bytes_max
        self.requests: list[bytes] = []
        self.responses: list[bytes] = []
        self.status = 0
        self.ended = False
        self.is_gone = False
        self.truncated = False

    @property
    def request(self) -> bytes:
        """The request's only chunk."""
        return self.requests[0] if self.requests else b""

    @property
    def response(self) -> bytes:
        """The response's only chunk."""
        return self.responses[0] if self.responses else b""

    async def receive(self) -> Message:
        """Pass one message of the request on."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = True
        elif message["type"] == "http.request" and (body := message.get("body")):
            self._keep(self.requests, body)
        return message

    def fail(self) -> None:
        """The app raised: the server answers 500, or breaks an answer off that had begun."""
        if not (self.ended or self.is_gone):
            self.status = 500

    async def send(self, message: Message) -> None:
        """Pass one message of the response on."""
        if message["type"] == "http.response.body":
            if body := message.get("body"):
                self._keep(self.responses, body)
            await self._send(message)
            if not message.get("more_body", False):
                self.ended = True
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    def _keep(self, chunks: list[bytes], body: bytes) -> None:
        self._bytes_left -= len(body)
        if self._bytes_left < 0:
            self.truncated = True
        else:
            chunks.append(body)
