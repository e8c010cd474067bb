"""Asks a provider through the official `openai` client: connections, credentials, retries in a budget.

OpenAI's own API, Anthropic's, Vertex AI's, Bedrock's and those of self-hosted servers all speak this
protocol at some URL, so one client serves them all; docs/decisions/0019-llm-serving.md says why not
a translating library.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from configs.serving_runtime import Api, Provider
from serving.llm.asgi import HttpAnswer
from serving.llm.errors import NotServable
from serving.llm.provider_errors import ProviderTrouble, refused, too_late, unreachable

_BASE_URLS: dict[Provider, str] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com/v1",
}
_KEY_VARIABLES: dict[Provider, str] = {
    "openai": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "vertex": "VERTEX_ACCESS_TOKEN",
    "bedrock": "AWS_BEARER_TOKEN_BEDROCK",
    "compatible": "LLM_API_KEY",
}
_UNCONNECTED = frozenset({"ConnectError", "ConnectTimeout"})
"""Before anything was sent. By name: the client's transport is httpx or httpx2, as its version has it."""
_BUDGET_FLOOR = 3.0
"""Retries that a quiet endpoint may always afford."""


def key_of(api: Api) -> str:
    """The credential, from the environment. Raises `NotServable` where it is not there."""
    name = api.key_env or _KEY_VARIABLES[api.provider]
    key = os.environ.get(name, "")
    if not key:
        raise NotServable(
            f"The key for {api.provider} is wanted from {name}, which is not set where the stack was "
            f"started. Next: export {name}, then interlock down and up."
        )
    return key


class RetryBudget:
    """Retries as a share of the requests: full at first, a retry takes one, a request gives a share back."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._left = _BUDGET_FLOOR if share > 0 else 0.0

    def earn(self) -> None:
        """One request came."""
        self._left = min(self._left + self._share, 10 * _BUDGET_FLOOR)

    def take(self) -> bool:
        """Whether one more may be sent again."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class ProviderClient:
    """One provider, asked by all requests of a replica."""

    def __init__(self, api: Api, key: str) -> None:
        import openai

        self._budget = RetryBudget(api.retry_budget)
        self._retries = api.retries
        self._client = openai.AsyncOpenAI(
            api_key=key,
            base_url=api.base_url or _BASE_URLS[api.provider],
            timeout=openai.Timeout(api.timeout_s, connect=api.connect_timeout_s),
            max_retries=0,  # ours, in a budget
        )

    async def ask(self, path: str, body: Mapping[str, Any]) -> HttpAnswer:
        """Send; returns once the answer has begun. Raises `ProviderTrouble`."""
        self._budget.earn()
        tries_left = self._retries
        while True:
            try:
                return await self._once(path, body)
            except _Again as again:
                if tries_left == 0 or not self._budget.take():
                    raise again.trouble from again.__cause__
                tries_left -= 1
                await _pause(again.trouble)

    async def _once(self, path: str, body: Mapping[str, Any]) -> HttpAnswer:
        import openai

        try:
            sent = self._client.post(
                path.removeprefix("/v1"),
                content=json.dumps(body).encode(),  # ASCII: a lone surrogate would have no bytes
                cast_to=object,
                options={"headers": {"X-Stainless-Raw-Response": "stream"}},
            )
            raw: Any = await sent
            return HttpAnswer(raw.http_response)
        except openai.APIConnectionError as error:  # time-outs are among them
            what = type(error.__cause__ or error).__name__
            if what in _UNCONNECTED:
                raise _Again(unreachable(what)) from error
            if isinstance(error, openai.APITimeoutError):
                raise too_late() from error
            raise unreachable(what) from error
        except openai.APIStatusError as error:
            trouble = refused(error.status_code, _document(error), error.response.headers.get("retry-after"))
            if trouble.is_busy:
                raise _Again(trouble) from error
            raise trouble from error

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class _Again(Exception):
    """Nothing was generated: the same request may be sent again."""

    def __init__(self, trouble: ProviderTrouble) -> None:
        super().__init__(str(trouble))
        self.trouble = trouble


def _document(error: Any) -> object:
    """The provider's whole body; the client has unwrapped `error` of it."""
    try:
        return error.response.json()
    except ValueError:
        return None


async def _pause(trouble: ProviderTrouble) -> None:
    import asyncio

    try:
        wait_s = float(trouble.retry_after or 0.2)
    except ValueError:
        wait_s = 1.0
    await asyncio.sleep(min(wait_s, 5.0))
