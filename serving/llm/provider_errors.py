"""What a provider's failure means for our client, in the words of OpenAI's API.

A refused credential, an unknown model, a used-up quota are faults of this endpoint, not of who
called it: they become 502, so that they count against the version. A bad request stays the
client's (4xx, the provider's own text), busy stays busy (429 and 503, with Retry-After).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

_OURS = frozenset({401, 402, 403, 404})
"""Refusals that name our account, our key or our model."""
_USED_UP = frozenset({"insufficient_quota", "billing_not_active"})
"""Codes of a 429 against which waiting does not help."""
_PASSING = frozenset({408, 409})
"""The provider's own trouble: it had no time, or was in its own way."""


class ProviderTrouble(Exception):
    """A request that got no answer to hand on. `document` is the body for the client."""

    def __init__(
        self, message: str, status: int, document: Mapping[str, Any], retry_after: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.document = document
        self.retry_after = retry_after

    @property
    def is_busy(self) -> bool:
        """Whether it was refused before anything was generated, and may be sent again."""
        return self.retry_after is not None


def openai_error(message: str, kind: str, code: int) -> dict[str, Any]:
    """An error as vLLM and OpenAI word it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def refused(status: int, body: object, retry_after: str | None) -> ProviderTrouble:
    """The provider answered with an error. Its text reaches the client only where it is the client's."""
    if status in _OURS or (status == 429 and _is_used_up(body)):
        return _mapped(502, f"The provider refused this endpoint ({status}).", "provider_refused", None)
    if status == 429:
        return _mapped(429, "The provider is busy.", "rate_limit_exceeded", retry_after or "1")
    if 400 <= status < 500 and status not in _PASSING:
        known = body if isinstance(body, dict) and "error" in body else None
        document = known or openai_error("The provider refused the request.", "invalid_request_error", status)
        return ProviderTrouble(f"the provider answered {status}", status, document)
    if status in (503, 529):
        return _mapped(503, "The provider is overloaded.", "overloaded", retry_after or "1")
    return _mapped(502, f"The provider failed ({status}).", "provider_error", None)


def _is_used_up(body: object) -> bool:
    error: object = cast("Mapping[str, object]", body).get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and str(cast("Mapping[str, object]", error).get("code")) in _USED_UP


def unreachable(what: str) -> ProviderTrouble:
    """No connection."""
    return _mapped(502, f"The provider cannot be reached: {what}.", "provider_unreachable", None)


def engine_lost(what: str) -> ProviderTrouble:
    """The engine behind a front does not answer."""
    return _mapped(502, f"The engine cannot be reached: {what}.", "engine_unreachable", None)


def too_late() -> ProviderTrouble:
    """No byte within the policy's time."""
    return _mapped(504, "The provider did not answer in time.", "provider_timeout", None)


def _mapped(status: int, message: str, kind: str, retry_after: str | None) -> ProviderTrouble:
    return ProviderTrouble(message, status, openai_error(message, kind, status), retry_after)
