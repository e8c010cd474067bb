"""Limits of a request: each refusal is a 400 in OpenAI's form that names the limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from configs.guards import GuardLimits
from serving.completions import CHAT_PATH, TEXT_PATHS

_MOST_TOKENS = ("max_tokens", "max_completion_tokens")
_ANSWERS = ("n", "best_of")


class RefusedRequest(Exception):
    """A request that is not passed on. `limit` names the limit or the check, `param` the field."""

    def __init__(self, message: str, *, limit: str, param: str | None, code: str, status: int = 400) -> None:
        super().__init__(message)
        self.limit = limit
        self.param = param
        self.code = code
        self.status = status

    @property
    def document(self) -> Mapping[str, Any]:
        """The body for the client."""
        kind = "invalid_request_error" if self.status == 400 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def check_body(size: int, limits: GuardLimits) -> None:
    """Raises `RefusedRequest` for a body of more bytes."""
    if limits.body_bytes is not None and size > limits.body_bytes:
        raise _beyond("body_bytes", f"The body is larger than the {limits.body_bytes} bytes allowed.", None)


def check_prompt(characters: int, limits: GuardLimits) -> None:
    """Raises `RefusedRequest` for more text."""
    most = limits.prompt_characters
    if most is not None and characters > most:
        message = f"The request has {characters} characters of text; at most {most} are allowed."
        raise _beyond("prompt_characters", message, "messages")


def apply_limits(fields: dict[str, Any], path: str, limits: GuardLimits) -> list[str]:
    """Refuse what is beyond a limit, or bring it within, in place. Returns which limits changed it.

    Numbers in quotes and the like are refused under a limit: a lenient server would read them.
    """
    for name in limits.refused:
        if fields.get(name) is not None:
            raise RefusedRequest(
                f"The parameter `{name}` is not allowed here.",
                limit="refused",
                param=name,
                code="parameter_not_allowed",
            )
    if path not in TEXT_PATHS:
        return []
    if limits.n is not None:
        _check_answers(fields, limits.n)
    return ["max_tokens"] if limits.max_tokens is not None and _limit_tokens(fields, path, limits) else []


def _limit_tokens(fields: dict[str, Any], path: str, limits: GuardLimits) -> bool:
    most = limits.max_tokens
    assert most is not None
    asked = {name: _whole(fields, name) for name in _MOST_TOKENS}
    named = {name: value for name, value in asked.items() if value is not None}
    clamped = False
    for name, value in named.items():
        if value > most and limits.over_max_tokens == "refuse":
            raise _beyond("max_tokens", f"`{name}` is {value}; at most {most} are allowed.", name)
        if value > most:
            fields[name] = most
            clamped = True
    if not named:
        fields["max_completion_tokens" if path == CHAT_PATH else "max_tokens"] = most
    return clamped


def _check_answers(fields: Mapping[str, Any], most: int) -> None:
    prompt: object = fields.get("prompt")
    prompts = cast("list[object]", prompt) if isinstance(prompt, list) else []
    many = len(prompts) if prompts and not isinstance(prompts[0], int) else 1
    for name in _ANSWERS:
        answers = _whole(fields, name) or 1
        if answers * many > most:
            message = f"The request asks for {answers * many} answers; at most {most} are allowed."
            raise _beyond("n", message, name if answers > 1 else "prompt")


def _whole(fields: Mapping[str, Any], name: str) -> int | None:
    value: object = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise RefusedRequest(f"`{name}` must be a whole number.", limit=name, param=name, code="invalid_type")
    return value


def _beyond(limit: str, message: str, param: str | None) -> RefusedRequest:
    return RefusedRequest(message, limit=limit, param=param, code=f"{limit}_exceeded")
