"""vLLM's stand-in: takes the same options, loads the same middleware, streams words at a given pace.

    python -m tests.serving.llm.engine --model DIR --served-model-name N --host H --port P --middleware M ...

A prompt says what it does: `slow` waits 200 ms a word, `slowest` half a minute for a whole answer, `fail`
answers 500, `say a|b` answers these parts. A request that must call a tool gets a call of the first or the
named one. In the middle of a stream `die` kills the engine, `raise` is an exception, `in-band` an error as
an event. A client that leaves counts as aborted; `/asked` shows the newest request. The model's folder is
its version: answers repeat its name.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import importlib
import json
import os
import signal
import struct
import uuid
from pathlib import Path
from typing import Any

import uvicorn

WORDS = 12
ARGUMENTS = ('{"order": ', '"A1', '7"', "}")


class Engine:
    def __init__(self, model: str, served_name: str) -> None:
        self.model = Path(model).name
        self.served_name = served_name
        self.running = 0
        self.aborted = 0
        self.asked: dict[str, Any] = {}

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        path = scope["path"]
        if path == "/health":
            await self.reply(send, 200, {})
        elif path == "/v1/models":
            await self.reply(
                send, 200, {"object": "list", "data": [{"id": self.served_name, "object": "model"}]}
            )
        elif path == "/asked":
            await self.reply(send, 200, self.asked)
        elif path == "/metrics":
            lines = (
                f'vllm:num_requests_running{{engine="0"}} {float(self.running)}',
                'vllm:num_requests_waiting{engine="0"} 0.0',
                'vllm:kv_cache_usage_perc{engine="0"} 0.25',
                f"test:aborted {self.aborted}",
            )
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": "\n".join(lines).encode() + b"\n"})
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self.running += 1
            try:
                await self.complete(path, receive, send)
            finally:
                self.running -= 1
        elif path == "/v1/embeddings":
            asked = await self.read(receive)
            if wrong := what_is_wrong(asked, path, self.served_name):
                await self.reply(send, *wrong)
            else:
                await self.reply(send, 200, embeddings(asked, self.served_name))
        else:
            await self.reply(send, 404, {"error": {"message": "Not Found", "code": 404}})

    async def read(self, receive) -> dict[str, Any]:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.asked = json.loads(body)
        return self.asked

    async def complete(self, path: str, receive, send) -> None:
        asked = await self.read(receive)
        text = json.dumps(asked.get("messages") or asked.get("prompt"))
        if "fail" in text:
            await self.reply(send, 500, {"error": {"message": "failed", "code": 500}})
            return
        pause_s = 0.2 if "slow" in text else 0.01
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": WORDS}
        if wrong := what_is_wrong(asked, path, self.served_name):
            await self.reply(send, *wrong)
            return
        name = tool_to_call(asked)
        words = words_to_say(asked, f"{self.model} ")
        finish = "stop" if name is None else "tool_calls"
        if not asked.get("stream"):
            gone = asyncio.ensure_future(receive())
            done, _ = await asyncio.wait({gone}, timeout=30 if "slowest" in text else pause_s)
            if done:
                self.aborted += 1
                return
            gone.cancel()
            message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
            if name is not None:
                message |= {"content": None, "tool_calls": [call(name, "".join(ARGUMENTS))]}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            whole = {"id": "x", "model": self.served_name, "choices": [choice], "usage": usage}
            await self.reply(send, 200, whole)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(receive())
        deltas = [{"content": word} for word in words] if name is None else call_in_parts(name)
        for number, delta in enumerate(deltas):
            done, _ = await asyncio.wait({gone}, timeout=pause_s)
            if done:
                self.aborted += 1
                return
            if number == len(deltas) // 2:
                await self.break_off(send, text)
                if "in-band" in text:
                    break
            last = number == len(deltas) - 1
            choice = {"index": 0, "delta": delta, "finish_reason": finish if last else None}
            await self.event(send, {"id": "x", "model": self.served_name, "choices": [choice]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            await self.event(send, {"id": "x", "model": self.served_name, "choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        gone.cancel()

    async def break_off(self, send, text: str) -> None:
        """What the prompt wants to go wrong in the middle of its answer."""
        if "die" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "raise" in text:
            raise RuntimeError("as the prompt wants it")
        if "in-band" in text:
            await self.event(send, {"error": {"message": "EngineCore died", "code": 500}})

    @staticmethod
    async def event(send, document: dict) -> None:
        body = b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})

    @staticmethod
    async def reply(send, status: int, document: dict) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(document).encode()})


def what_is_wrong(asked: dict[str, Any], path: str, served_name: str) -> tuple[int, dict[str, Any]] | None:
    """As vLLM refuses it, roughly: who passes refusals on must not care for their words."""

    def refusal(status: int, kind: str, message: str, param: str) -> tuple[int, dict[str, Any]]:
        return status, {"error": {"message": message, "type": kind, "param": param, "code": status}}

    if asked.get("model", served_name) != served_name:
        return refusal(404, "NotFoundError", f"The model `{asked['model']}` does not exist.", "model")
    if not isinstance(asked.get("temperature", 0), int | float) or not 0 <= asked.get("top_p", 1) <= 1:
        return refusal(400, "BadRequestError", "1 validation error", "temperature")
    if (asked.get("max_tokens") or 0) > 4096:
        return refusal(400, "BadRequestError", "max_tokens is too large", "max_tokens")
    if asked.get("tool_choice") and not asked.get("tools"):
        return refusal(
            400, "BadRequestError", "When using `tool_choice`, `tools` must be set.", "tool_choice"
        )
    if path.endswith("/chat/completions") and not asked.get("messages"):
        return refusal(400, "BadRequestError", "messages is empty", "messages")
    return None


def tool_to_call(asked: dict[str, Any]) -> str | None:
    """The tool that a request says must be called: the named one, or the first of those it has."""
    choice = asked.get("tool_choice")
    if isinstance(choice, dict):
        return choice["function"]["name"]
    return asked["tools"][0]["function"]["name"] if choice == "required" else None


def call(name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call-{uuid.uuid4().hex}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def call_in_parts(name: str) -> list[dict[str, Any]]:
    """A call as it is streamed: its name, its arguments in pieces, and an end without any."""
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in ARGUMENTS]
    return [*({"tool_calls": [one]} for one in ({"index": 0, **call(name, "")}, *rest)), {}]


def embeddings(asked: dict[str, Any], served_name: str) -> dict[str, Any]:
    """Vectors by the letters of the inputs, encoded as asked."""
    texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
    vectors = [[float(text.count(letter)) / 3 for letter in "aeiou"] for text in texts]
    encoded = asked.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack("<5f", *one)).decode() if encoded else one,
        }
        for index, one in enumerate(vectors)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "model": served_name, "data": data, "usage": usage}


def words_to_say(asked: dict[str, Any], otherwise: str) -> list[str]:
    """What follows `say ` in the last message, an event for each part between bars."""
    messages = asked.get("messages")
    said = messages[-1].get("content") if isinstance(messages, list) and messages else None
    if isinstance(said, str) and said.startswith("say "):
        return said.removeprefix("say ").split("|")
    return [otherwise] * WORDS


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "served-model-name", "host", "port", "middleware"):
        parser.add_argument(f"--{name}")
    told, _ = parser.parse_known_args()
    app: Any = Engine(told.model, told.served_model_name)
    if told.middleware:
        module, _, name = told.middleware.rpartition(".")
        app = getattr(importlib.import_module(module), name)(app)
    uvicorn.run(app, host=told.host, port=int(told.port), log_level="warning")


if __name__ == "__main__":
    main()
