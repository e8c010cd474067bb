"""The process of a front: waits for its engine, warms up through its own layers, then is healthy."""

from __future__ import annotations

import asyncio
import logging
import time

from serving.direct import DirectClient
from serving.llm.app_server import serve_app
from serving.llm.front_app import EngineClient, FrontApp
from serving.llm.spec import LlmSpec, read_runtime
from serving.llm.warmup import answer_recent

logger = logging.getLogger("interlock.llm")

_POLL_S = 0.2


def serve_front(spec: LlmSpec) -> int:
    """Run until a signal; returns the exit status. Raises `NotServable` for a prompt that cannot be read."""
    while not (runtime := read_runtime(spec.state_dir, spec.engine_name)):  # the engine says what it is
        time.sleep(_POLL_S)
    engine = EngineClient(spec.host, spec.engine_port)
    app = FrontApp(engine)

    async def become_ready() -> None:
        """An engine may take its time: whoever deploys knows how long, and the supervisor keeps both."""
        while not await engine.is_healthy():
            await asyncio.sleep(_POLL_S)
        deadline = time.monotonic() + spec.start_timeout_s
        answered = await asyncio.to_thread(answer_recent, spec, DirectClient(spec.host), deadline)
        app.ready = True
        logger.info("Ready on port %d after %d warm-up prompts", spec.port, answered)

    return serve_app(spec, app, runtime=runtime, beside=become_ready, close=engine.close)
