"""A small OpenAI-compatible server on loopback: real HTTP, answers by functions of the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Chat = Callable[[list[dict[str, str]]], str | dict[str, Any]]
"""What a model says to messages, or its whole answer."""
Embed = Callable[[str], list[float]]


class ModelServer:
    """What was asked, and what is answered.

    `failures` are statuses to answer before anything else, or after `answers_before_failures` answers.
    With `reasons` it refuses what OpenAI's reasoning models refuse.
    """

    def __init__(self, chat: Chat, embed: Embed) -> None:
        self.chat = chat
        self.embed = embed
        self.failures: list[int] = []
        self.answers_before_failures = 0
        self.reasons = False
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


def words(text: str) -> list[float]:
    """An embedding that knows which letters a text has."""
    return [float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]


@contextmanager
def model_server(chat: Chat = lambda messages: "{}", embed: Embed = words) -> Iterator[ModelServer]:
    """Serve until the block ends."""
    state = ModelServer(chat, embed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.asked.append(body)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            if state.failures and state.answers_before_failures == 0:
                self._reply(state.failures.pop(0), {"error": {"message": "not now"}})
                return
            state.answers_before_failures = max(0, state.answers_before_failures - 1)
            if self.path.endswith("/embeddings"):
                rows = [{"index": i, "embedding": state.embed(text)} for i, text in enumerate(body["input"])]
                self._reply(200, {"data": rows[::-1]})
            elif state.reasons and (refusal := refused_by_reasoning(body)):
                self._reply(400, {"error": {"message": refusal, "type": "invalid_request_error"}})
            else:
                said = state.chat(body["messages"])
                self._reply(200, said if isinstance(said, dict) else chat_answer(said))

        def _reply(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing: pytest shows what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def shown(messages: list[dict[str, str]]) -> tuple[str, list[str]]:
    """What a judge is shown: the question and the answers."""
    lines = messages[-1]["content"].splitlines()
    texts = {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}
    answers = [json.loads(text) for name, text in texts.items() if name.startswith("Answer")]
    return json.loads(texts["Question"]), answers


def refused_by_reasoning(body: dict[str, Any]) -> str:
    """What OpenAI's reasoning models say of a request that they refuse; "" where they answer."""
    if "max_tokens" in body:
        return "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    if body.get("temperature", 1) != 1:
        return "Unsupported value: 'temperature'. Only the default (1) value is supported."
    return ""


def chat_answer(text: str, tokens_in: int = 10, finish_reason: str = "stop") -> dict[str, Any]:
    """A chat completion as servers write it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": tokens_in, "completion_tokens": len(text.split())}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}
