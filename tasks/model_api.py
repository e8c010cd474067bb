"""Asks models behind OpenAI-compatible APIs: judges and embeddings. Retried, bounded, errors translated.

Plain HTTP: two calls do not need a client library, and any server that speaks the protocol will do.
"""

from __future__ import annotations

import json
import os
import random
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from configs.generation import Api
from serving.completions import Completion, read_completion
from serving.errors import ServingError, SetupError
from serving.upstream import is_loopback

_EMBEDDED_AT_ONCE = 64
_WAIT_S_MAX = 20.0
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class ModelApiError(ServingError):
    """A model's API did not answer what was asked; whatever depends on it is unknown, not passed."""


class ModelApi:
    """One model behind an API. Thread-safe; close it or use it as a context manager."""

    def __init__(self, api: Api, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._api = api
        self._sleep = sleep
        headers = {"authorization": f"Bearer {_key(api)}"} if api.key else {}
        self._client = httpx.Client(
            headers=headers, timeout=api.timeout_s, trust_env=not is_loopback(api.url)
        )
        weakref.finalize(self, self._client.close)  # for callers that only ever drop it

    def __enter__(self) -> ModelApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def chat(self, messages: Sequence[dict[str, str]], fields: Mapping[str, Any]) -> Completion:
        """One answer; `fields` say how it is decoded. Raises ModelApiError."""
        document = self._post("/chat/completions", {"messages": list(messages), **fields})
        found = read_completion(document)
        if found is None:
            raise ModelApiError(f"{self._api.url} answered no completion: {document[:200]!r}")
        return found

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Embeddings, shape (n, d), in the texts' order. Raises ModelApiError."""
        parts: list[list[float]] = []
        for start in range(0, len(texts), _EMBEDDED_AT_ONCE):
            batch = [text or " " for text in texts[start : start + _EMBEDDED_AT_ONCE]]
            body = self._post("/embeddings", {"input": batch})
            try:
                rows = sorted(json.loads(body)["data"], key=lambda row: row["index"])
                vectors = [row["embedding"] for row in rows]
            except (ValueError, KeyError, TypeError) as error:
                raise ModelApiError(
                    f"{self._api.url}/embeddings answered no embeddings: {error!r}"
                ) from error
            if len(vectors) != len(batch):
                raise ModelApiError(
                    f"{self._api.url}/embeddings was asked for {len(batch)} texts, {len(vectors)} came back"
                )
            parts += vectors
        return np.asarray(parts, np.float64)

    def each(self, ask: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        """Call `ask` for every item, `concurrency` at a time, in the items' order. Raises what it raises."""
        with ThreadPoolExecutor(self._api.concurrency, thread_name_prefix="model-api") as pool:
            return list(pool.map(ask, items))

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        url = f"{self._api.url.rstrip('/')}{path}"
        said = ""
        for attempt in range(self._api.retries + 1):
            if attempt:
                self._sleep(min(_WAIT_S_MAX, 2 ** (attempt - 1) * (0.5 + random.random())))  # noqa: S311
            try:
                reply = self._client.post(url, json={"model": self._api.model, **body})
            except httpx.HTTPError as error:
                said = f"no answer ({error.__class__.__name__})"
                continue
            if reply.status_code == httpx.codes.OK:
                return reply.content
            said = f"{reply.status_code}: {reply.text[:200]}"
            if reply.status_code < 500 and reply.status_code not in (408, 429):
                break
        raise ModelApiError(
            f"{url} (model {self._api.model}): {said}. Next: check the policy's url, model, key; a reasoning "
            "model may want tokens_field: max_completion_tokens and temperature: null"
        )


def _key(api: Api) -> str:
    name = (api.key or "").removeprefix("env:")
    value = os.environ.get(name, "")
    if not value:
        raise SetupError(f"{api.url} needs a key, and {name} is not set. Next: set it where the worker runs")
    return value
