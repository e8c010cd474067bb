"""The process of an API-hosted replica: the app behind the capture, drained on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Generator

import uvicorn

from serving.capture.generation import GenerationCapture
from serving.capture.recorder import CaptureConfig
from serving.guards.wiring import with_guards
from serving.llm.api_app import ApiApp
from serving.llm.errors import NotServable
from serving.llm.process import capture_document
from serving.llm.provider import ProviderClient, key_of
from serving.llm.source import Source
from serving.llm.spec import LlmSpec

logger = logging.getLogger("interlock.llm")

_POLL_S = 0.05


def serve_api(spec: LlmSpec, source: Source) -> int:
    """Run until a signal; returns the exit status. Raises `NotServable` without a key."""
    api = spec.serving.api
    if api is None:
        raise NotServable("The policy has no serving.api. Next: write it.")
    client = ProviderClient(api, key_of(api))
    app = ApiApp(client.ask, served_name=spec.served_name, model=source.model)
    document = capture_document(spec) | {"ready_file": None}
    server = _Server(
        uvicorn.Config(
            GenerationCapture(with_guards(app, spec), CaptureConfig.from_mapping(document)),
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
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_run(spec, app, server, client))
    return 0


class _Server(uvicorn.Server):
    """uvicorn, without its own signal handlers: they would close the door before we are seen to leave."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals to `_run`."""
        yield


async def _run(spec: LlmSpec, app: ApiApp, server: uvicorn.Server, client: ProviderClient) -> None:
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

    draining = asyncio.create_task(drain())
    logger.info("%s version %s answers on port %d", spec.endpoint, spec.version, spec.port)
    await server.serve()
    draining.cancel()
    await client.close()
