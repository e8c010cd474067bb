"""Puts a prompt before what clients say: an ASGI layer around the app that asks the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from serving.capture.middleware import ASGIApp, Receive, Scope, Send
from serving.completions import CHAT_PATH, COMPLETIONS_PATH, PROMPT_VARIABLES
from serving.llm.asgi import read_body, reply, with_body
from serving.llm.prompt_text import PromptText, VariableProblem

_BETWEEN = "\n\n"
_SYSTEM = frozenset({"system", "developer"})


class BadRequest(Exception):
    """The client's fault; `param` is the field, `code` the kind of fault."""

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class PromptLayer:
    """Chats get the prompt's messages, completions its text; embeddings and all else pass unchanged."""

    def __init__(self, app: ASGIApp, prompt: PromptText) -> None:
        self.app = app
        self._prompt = prompt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        if not is_post or scope["path"] not in (CHAT_PATH, COMPLETIONS_PATH):
            await self.app(scope, receive, send)
            return
        body = await read_body(receive)
        if body is None:
            return
        try:
            body = with_prompt(body, self._prompt, is_chat=scope["path"] == CHAT_PATH)
        except BadRequest as error:
            await reply(send, 400, _error(error))
            return
        await self.app(*with_body(scope, body, receive), send)


def with_prompt(body: bytes, prompt: PromptText, *, is_chat: bool) -> bytes:
    """A request with the prompt in it. What is no request at all stays for the model's server to refuse.

    Raises `BadRequest` for variables that are not the prompt's, and for what it cannot stand before.
    """
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(document, dict):
        return body
    fields = cast("dict[str, Any]", document)
    given: object = fields.pop(PROMPT_VARIABLES, None)
    if given is not None and not isinstance(given, dict):
        raise BadRequest(
            f"`{PROMPT_VARIABLES}` must be an object.", PROMPT_VARIABLES, "invalid_prompt_variables"
        )
    try:
        filled = prompt.filled(cast("dict[str, Any]", given or {}))
    except VariableProblem as problem:
        raise BadRequest(str(problem), f"{PROMPT_VARIABLES}.{problem.variable}", problem.code) from problem
    if is_chat:
        said: object = fields.get("messages")
        if isinstance(said, list):
            fields["messages"] = _before_messages(filled, cast("list[Any]", said))
    else:
        fields["prompt"] = _before_text(filled, fields.get("prompt"))
    return json.dumps(fields, separators=(",", ":")).encode()  # ASCII: a lone surrogate would have no bytes


def _before_messages(prompt: PromptText, said: list[Any]) -> list[Any]:
    if prompt.is_chat:
        return [*({"role": role, "content": text} for role, text in prompt.messages), *said]
    first: object = said[0] if said else None
    if not isinstance(first, dict) or cast("dict[str, Any]", first).get("role") not in _SYSTEM:
        return [{"role": "system", "content": prompt.text}, *said]
    system = cast("dict[str, Any]", first)  # many chat templates allow only one
    content: object = system.get("content")
    if isinstance(content, list):
        joined: object = [{"type": "text", "text": prompt.text}, *cast("list[Any]", content)]
    else:
        joined = f"{prompt.text}{_BETWEEN}{content}" if content else prompt.text
    return [{**system, "content": joined}, *said[1:]]


def _before_text(prompt: PromptText, asked: object) -> object:
    if prompt.is_chat:
        message = "This endpoint's prompt is a list of messages. Use /v1/chat/completions."
        raise BadRequest(message, "prompt", "prompt_needs_chat")
    if isinstance(asked, str):
        return prompt.text + _BETWEEN + asked
    texts = cast("list[object]", asked) if isinstance(asked, list) else []
    if texts and all(isinstance(one, str) for one in texts):
        return [prompt.text + _BETWEEN + cast("str", one) for one in texts]
    if isinstance(asked, list):
        message = "This endpoint puts a prompt before the text, so `prompt` cannot be given in tokens."
        raise BadRequest(message, "prompt", "prompt_needs_text")
    return asked


def _error(error: BadRequest) -> Mapping[str, Any]:
    """In OpenAI's form."""
    told = {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": error.code}
    return {"error": told}
