"""A model that answers as it is told, behind the guards, in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from configs.guards import Guards
from serving.guards.layer import GuardLayer

CHAT = "/v1/chat/completions"


class Scripted:
    """Answers with `parts`, one event each where a stream was asked for. Keeps what it was asked."""

    def __init__(self, *parts: str, field: str = "content") -> None:
        self.parts = parts
        self.field = field
        self.asked: list[dict[str, Any]] = []
        self.sent = 0
        self.was_left = False

    async def __call__(self, scope, receive, send) -> None:
        if scope["path"] == "/metrics":
            await self.whole(send, b"vllm:num_requests_running 0")
            return
        self.asked.append(json.loads((await receive())["body"]))
        if not self.asked[-1].get("stream"):
            message = {"role": "assistant", "content": "".join(self.parts)}
            if self.field == "arguments":
                call = {
                    "id": "c",
                    "type": "function",
                    "function": {"name": "f", "arguments": "".join(self.parts)},
                }
                message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": []}}]
            await self.whole(send, json.dumps({"id": "x", "choices": choices, "usage": {}}).encode())
            return
        gone = asyncio.ensure_future(receive())
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in self.parts:
            await asyncio.sleep(0)
            if gone.done():
                self.was_left = True
                return
            self.sent += 1
            await self.event(send, self.delta(part))
        await self.event(send, {}, "stop")
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        gone.cancel()

    def delta(self, part: str) -> dict[str, Any]:
        if self.field != "arguments":
            return {self.field: part}
        return {"tool_calls": [{"index": 0, "function": {"arguments": part}}]}

    async def event(self, send, delta: dict[str, Any], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": {"content": [delta]}}
        body = b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def whole(self, send, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Asked:
    """What a client got."""

    def __init__(self, sent: Sequence[dict[str, Any]]) -> None:
        start, *bodies = sent
        self.status: int = start["status"]
        self.headers = dict(start["headers"])
        self.bodies = [one["body"] for one in bodies if one["body"]]
        self.body = b"".join(self.bodies)
        self.ended = not bodies[-1].get("more_body", False)

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Of all events but the last."""
        events = [event[6:] for event in self.body.split(b"\n\n") if event]
        assert events[-1] == b"[DONE]"
        return [choice for event in events[:-1] for choice in json.loads(event)["choices"]]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)


def guarded(app: Any, **guards: Any) -> GuardLayer:
    return GuardLayer(app, Guards.model_validate(guards), version="3")


def chat(text: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": text}], **more}


async def ask_now(
    layer: Any, request: dict[str, Any] | bytes, path: str = CHAT, chunk: int = 1 << 20
) -> Asked:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    parts = [body[at : at + chunk] for at in range(0, len(body), chunk)]
    told = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    told[-1]["more_body"] = False
    sent: list[Any] = []

    async def receive() -> Any:
        return told.pop(0) if told else await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", str(len(body)).encode())]
    await layer({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return Asked(sent)


def ask(layer: Any, request: dict[str, Any] | bytes, path: str = CHAT, chunk: int = 1 << 20) -> Asked:
    return asyncio.run(ask_now(layer, request, path, chunk))
