"""Before a replica counts as healthy it answers: one completion of its own, then recent prompts.

A canary's caches are cold and its first batches compile: without this its first requests would be
slow through no fault of the version. The prompts are the newest of both slots' spools, oldest first, are
marked as replays (neither recorded nor counted), and ask for one token each: that fills the prefix
cache and costs little. A prompt that fails is no reason not to serve; the first completion is.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from serving.capture.sealing import Seal
from serving.capture.spool import newest_exchanges
from serving.completions import TEXT_PATHS, unstreamed
from serving.direct import DirectClient
from serving.endpoint import Exchange, Reply, Slot
from serving.llm.errors import EngineFailed
from serving.llm.spec import LlmSpec

logger = logging.getLogger("interlock.llm")

_PROBES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2, "temperature": 0},
    "/v1/embeddings": {"input": "Hello"},
}
"""The first that the engine knows: models for embeddings have no completions."""
_TIMEOUT_S = 60.0
_READ_MAX = 5_000
"""Newest requests of a slot among which prompts are looked for."""


def probe(spec: LlmSpec, direct: DirectClient) -> None:
    """Ask for one answer. Raises `EngineFailed` when there is none."""
    reply = Reply(0, b"", 0.0)
    for path, asked in _PROBES.items():
        body = json.dumps({"model": spec.served_name, **asked}).encode()
        reply = direct.post(spec.port, path, body, content_type="application/json", timeout_s=_TIMEOUT_S)
        if reply.status != 404:
            break
    if reply.status != 200:
        raise EngineFailed(
            f"The warm-up completion got status {reply.status}: {reply.body[:300].decode(errors='replace')}. "
            "Next: read vLLM's lines above."
        )


def answer_recent(spec: LlmSpec, direct: DirectClient, deadline: float) -> int:
    """Answer recent prompts until `deadline` comes near; returns how many were answered."""
    answered = 0
    for exchange in recent_prompts(spec):
        if time.monotonic() > deadline - _TIMEOUT_S / 2:
            break
        short = unstreamed(exchange.request, one_token=True)
        if short is not None:
            reply = direct.post(
                spec.port, exchange.path, short, content_type="application/json", timeout_s=_TIMEOUT_S
            )
            answered += reply.status == 200
    return answered


def recent_prompts(spec: LlmSpec) -> list[Exchange]:
    """The newest spooled requests for text, of whichever version answered them; oldest first."""
    if spec.serving.warm_up_prompts == 0:
        return []
    seal = Seal.from_file(spec.spool.key_file if spec.spool else None, os.environ)
    found: list[Exchange] = []
    for slot in Slot:
        exchanges = newest_exchanges(spec.spool_of_endpoint / slot.value, _READ_MAX, seal)
        found += [one for one in exchanges if one.path in TEXT_PATHS and one.status == 200]
    found.sort(key=lambda one: one.time)
    return found[-spec.serving.warm_up_prompts :]
