"""Answers that come whole, under output checks."""

from __future__ import annotations

import json
from typing import Any, cast

from serving.guards.holding import NO_TEXT
from serving.guards.panel import Panel
from serving.guards.pieces import Joined, pieces_of

_UNREADABLE = json.dumps(
    {
        "error": {
            "message": "The answer could not be checked.",
            "type": "server_error",
            "param": None,
            "code": "content_filter",
        }
    }
).encode()


async def guarded_answer(body: bytes, panel: Panel) -> bytes:
    """The answer as the client may see it: unchanged, redacted, or without the choices that are blocked.

    A body that cannot be read is replaced by an error: nothing unread goes out.
    """
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        return _UNREADABLE
    if not isinstance(document, dict):
        return _UNREADABLE
    answer = cast("dict[str, Any]", document)
    listed: object = answer.get("choices")
    choices = cast("list[Any]", listed) if isinstance(listed, list) else []
    changed = [await _guard_choice(choices, at, panel) for at in range(len(choices))]
    return json.dumps(answer).encode() if any(changed) else body


async def _guard_choice(choices: list[Any], at: int, panel: Panel) -> bool:
    choice = choices[at]
    if not isinstance(choice, dict):
        choices[at] = None
        return True
    known = cast("dict[str, Any]", choice)
    joined = Joined(pieces_of(known, NO_TEXT))
    judged = await panel.judge(joined.text)
    panel.count(judged.finds)
    if judged.failed or any(find.check.action == "block" for find in judged.finds):
        choices[at] = _blocked(known)
        return True
    redacted = joined.redact([find.span for find in judged.finds if find.check.action == "redact"])
    if redacted:
        known.pop("logprobs", None)  # they tell the words that were taken out
        known.pop("token_ids", None)
    return redacted


def _blocked(choice: dict[str, Any]) -> dict[str, Any]:
    blocked: dict[str, Any] = {"index": choice.get("index", 0), "finish_reason": "content_filter"}
    if "message" in choice:
        return blocked | {"message": {"role": "assistant", "content": ""}}
    return blocked | {"text": ""}
