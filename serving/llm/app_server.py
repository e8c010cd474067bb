"""Runs an app of ours as a replica: behind its layers and the capture, drained on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Protocol

import uvicorn

from configs.serving_runtime import Runtime
from serving.atomic import write_private
from serving.capture.generation import GenerationCapture
from serving.capture.middleware import ASGIApp, Receive, Scope, Send
from serving.capture.recorder import CaptureConfig
from serving.llm.layers import layered
from serving.llm.process import capture_document
from serving.llm.spec import LlmSpec
from serving.quiet_server import QuietServer

logger = logging.getLogger("interlock.llm")

_POLL_S = 0.05

_Effect = Callable[[], Coroutine[None, None, None]]


class DrainableApp(Protocol):
    """An app that knows how many requests it answers, and says it is unhealthy while it drains."""

    in_flight: int
    draining: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        ...


def serve_app(
    spec: LlmSpec, app: DrainableApp, *, runtime: Runtime, close: _Effect, beside: _Effect | None = None
) -> int:
    """Run until a signal, then `close`; returns the exit status. `beside` runs at the server's side.

    `runtime` is what the version is served by, in this process or behind it.
    """
    recorded: ASGIApp = GenerationCapture(
        layered(app, spec), CaptureConfig.from_mapping(capture_document(spec, runtime) | {"ready_file": None})
    )
    server = QuietServer(
        uvicorn.Config(
            recorded,
            host=spec.host,
            port=spec.port,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, int(spec.drain_s)),
        )
    )
    write_private(spec.ready_file, runtime)
    try:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(_run(spec, app, server, beside))
            runner.run(close())
    finally:
        spec.ready_file.unlink(missing_ok=True)
    return 0


async def _run(spec: LlmSpec, app: DrainableApp, server: uvicorn.Server, beside: _Effect | None) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)

    async def drain() -> None:
        await told.wait()
        app.draining = True
        began = loop.time()
        while (waited_s := loop.time() - began) < spec.drain_s:
            if waited_s >= spec.lame_duck_s and app.in_flight == 0:
                break
            await asyncio.sleep(_POLL_S)
        server.should_exit = True

    tasks = [asyncio.create_task(drain())]
    if beside is not None:
        tasks.append(asyncio.create_task(beside()))
    logger.info("%s version %s answers on port %d", spec.endpoint, spec.version, spec.port)
    await server.serve()
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
