"""The guards as an ASGI layer around what asks a language model: limits, then checks in, then checks out.

The app behind gets its own copy of the request, encoded anew: what was checked is what is asked,
whatever a lenient reader would have made of the client's bytes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from configs.guards import Guards
from serving.capture.middleware import REPLAY_HEADER, ASGIApp, Message, Receive, Scope, Send
from serving.completions import TEXT_PATHS
from serving.guards.checks import build_checks
from serving.guards.counts import GuardCounts, is_copy
from serving.guards.holding import HeldStream
from serving.guards.limits import RefusedRequest, apply_limits, check_body, check_prompt
from serving.guards.panel import Panel
from serving.guards.pieces import Joined, pieces_of
from serving.guards.whole import guarded_answer

_PATHS = TEXT_PATHS | {"/v1/embeddings"}
_JSON = (b"content-type", b"application/json")
_IN_TOKENS = ("prompt", "input")


class GuardLayer:
    """One replica's guards. `/metrics` of the app behind gets their counts added.

    Raises `UnknownCheck` for a check that cannot be imported here.
    """

    def __init__(self, app: ASGIApp, guards: Guards, *, version: str) -> None:
        self.app = app
        self.counts = GuardCounts()
        self._guards = guards
        self._version = version

        def panel(stage: Any, checks: Any) -> Panel:
            built = build_checks(checks, timeout_s=guards.timeout_s)
            return Panel(stage, built, self.counts, timeout_s=guards.timeout_s, on_error=guards.on_error)

        self._input = panel("input", guards.input)
        self._output = panel("output", guards.output)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _PATHS:
            is_copy.set(any(name == REPLAY_HEADER for name, _ in scope["headers"]))
            await self._guarded(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/metrics":
            await self.app(scope, receive, _Appending(send, self.counts.text(self._version).encode()).send)
        else:
            await self.app(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._body(receive)
            if body is None:
                return
            fields = _fields(body)
            await self._check_request(fields, scope["path"])
            told = json.dumps(fields).encode()  # ASCII: a lone surrogate would have no bytes
        except RefusedRequest as refusal:
            self.counts.add("request", refusal.limit, "block")
            await _reply(send, refusal.status, json.dumps(refusal.document).encode())
            return
        tap = _Tap(self, told, receive, send, fields)
        if self._output and scope["path"] in TEXT_PATHS:
            await self.app(_with_length(scope, len(told)), tap.receive, tap.send)
        else:
            await self.app(_with_length(scope, len(told)), tap.receive, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where the client went away. Raises `RefusedRequest` once it is too long."""
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            check_body(size, self._guards.limits)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _check_request(self, fields: dict[str, Any], path: str) -> None:
        """Bring the request within the limits and redact it, in place. Raises `RefusedRequest`."""
        for limit in apply_limits(fields, path, self._guards.limits):
            self.counts.add("request", limit, "clamp")
        if not self._input and self._guards.limits.prompt_characters is None:
            return
        for name in _IN_TOKENS:
            if _is_in_tokens(fields.get(name)):
                message = f"`{name}` must be text: this endpoint checks it, and cannot read tokens."
                raise RefusedRequest(message, limit="tokens", param=name, code="text_required")
        told = {name: value for name, value in fields.items() if name != "model"}
        joined = Joined(pieces_of(told))
        check_prompt(len(joined.text), self._guards.limits)
        if not self._input:
            return
        judged = await self._input.judge(joined.text)
        if judged.failed:
            message = "The request could not be checked. Try again later."
            raise RefusedRequest(
                message, limit=judged.failed, param=None, code="guard_unavailable", status=503
            )
        self._input.count(judged.finds)
        for find in judged.finds:
            if find.check.action == "block":
                message = f"The request was blocked: {find.check.name} found {find.span.kind}."
                raise RefusedRequest(message, limit=find.check.name, param=None, code="content_filter")
        if joined.redact([find.span for find in judged.finds if find.check.action == "redact"]):
            model = {name: value for name, value in fields.items() if name == "model"}
            fields.clear()
            fields |= model | told

    @property
    def output(self) -> Panel:
        """The checks of answers."""
        return self._output

    def held_stream(self, fields: dict[str, Any]) -> HeldStream:
        """For a stream that answers this request."""
        prompt: object = fields.get("prompt")
        prompts = len(cast("list[object]", prompt)) if isinstance(prompt, list) else 1
        n: object = fields.get("n")
        answers = prompts * (n if isinstance(n, int) and n > 0 else 1)
        return HeldStream(self._output, self._guards.stream, answers=answers)


class _Tap:
    """One answer on its way to the client."""

    def __init__(
        self, layer: GuardLayer, told: bytes, receive: Receive, send: Send, fields: dict[str, Any]
    ) -> None:
        self._layer = layer
        self._told: bytes | None = told
        self._receive = receive
        self._send = send
        self._fields = fields
        self._start: Message = {}
        self._stream: HeldStream | None = None
        self._rest = b""
        self._over = asyncio.Event()

    async def receive(self) -> Message:
        """The request, then what the client does; as if it had gone once its answer is over."""
        if self._told is not None:
            body, self._told = self._told, None
            return {"type": "http.request", "body": body, "more_body": False}
        client = asyncio.ensure_future(self._receive())
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({client, over}, return_when=asyncio.FIRST_COMPLETED)
            return client.result() if client.done() else {"type": "http.disconnect"}
        finally:
            client.cancel()
            over.cancel()

    async def send(self, message: Message) -> None:
        """Hold, check, pass on."""
        if self._over.is_set():
            return
        if message["type"] == "http.response.start":
            self._start = message
            if _content_type(message).startswith(b"text/event-stream") and message["status"] == 200:
                self._stream = self._layer.held_stream(self._fields)
                await self._send(message)
            return
        self._rest += message.get("body", b"")
        more = message.get("more_body", False)
        if self._stream is not None:
            await self._send_stream(self._stream, more)
        elif not more:
            await self._send_whole()

    async def _send_stream(self, stream: HeldStream, more: bool) -> None:
        *events, self._rest = self._rest.replace(b"\r\n", b"\n").split(b"\n\n")
        if not more and self._rest.strip():
            events.append(self._rest)
        out: list[bytes] = []
        for event in events:
            out += await stream.feed(event)
        if not more:
            out += await stream.close()
        for event in out:  # each by itself: the capture takes the time of every one
            await self._send({"type": "http.response.body", "body": event + b"\n\n", "more_body": True})
        if stream.over or not more:
            self._over.set()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_whole(self) -> None:
        status, body = self._start["status"], self._rest
        if status == 200:
            body = await guarded_answer(body, self._layer.output)
        kept = [(name, value) for name, value in self._start["headers"] if name.lower() != b"content-length"]
        headers = [*kept, (b"content-length", str(len(body)).encode())]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class _Appending:
    """Adds a text to the end of an answer."""

    def __init__(self, send: Send, text: bytes) -> None:
        self._send = send
        self._text = text
        self._status = 0

    async def send(self, message: Message) -> None:
        """Pass on, with the text behind the last part of an answer that is well."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            kept = [(name, value) for name, value in message["headers"] if name.lower() != b"content-length"]
            message = {**message, "headers": kept}
        elif not message.get("more_body", False) and self._status == 200:
            body = message.get("body", b"")
            gap = b"" if not body or body.endswith(b"\n") else b"\n"
            message = {**message, "body": body + gap + self._text}
        await self._send(message)


def _fields(body: bytes) -> dict[str, Any]:
    """The request. Raises `RefusedRequest` for what is none: nothing unread is passed on."""
    try:
        document: object = json.loads(body)
        json.dumps(document)  # as deep as it came, it must go on
    except (ValueError, RecursionError) as error:
        raise _no_request("The body is not JSON.") from error
    if not isinstance(document, dict):
        raise _no_request("The body is no JSON object.")
    return cast("dict[str, Any]", document)


def _no_request(message: str) -> RefusedRequest:
    return RefusedRequest(message, limit="json", param=None, code="invalid_json")


def _is_in_tokens(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return any(isinstance(one, int | float | list) for one in cast("list[object]", value))


def _content_type(start: Message) -> bytes:
    return next((value for name, value in start["headers"] if name.lower() == b"content-type"), b"")


def _with_length(scope: Scope, length: int) -> Scope:
    kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return {**scope, "headers": [*kept, (b"content-length", str(length).encode())]}


async def _reply(send: Send, status: int, body: bytes) -> None:
    headers = [_JSON, (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
