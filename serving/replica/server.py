"""One replica's process: the server listens at once, loads in a thread, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from serving.capture.middleware import CaptureMiddleware
from serving.capture.recorder import CaptureConfig, Recorder, redaction_key, spool_seal
from serving.capture.redact import Redaction
from serving.quiet_server import QuietServer
from serving.replica.app import ReplicaApp
from serving.replica.errors import LoadFailed, RegistryUnreachable

if TYPE_CHECKING:
    from serving.replica.model import ServedModel
    from serving.replica.spec import ReplicaSpec

logger = logging.getLogger("interlock.replica")

EXIT_REGISTRY_UNREACHABLE = 3
EXIT_MODEL_FAILED = 4

_SWITCH_INTERVAL_S = 0.001
"""The event loop waits at most about this long for the interpreter behind a predicting thread."""


def capture_config(spec: ReplicaSpec) -> CaptureConfig | None:
    """What this replica records; None where it records nothing."""
    capture = spec.capture if spec.capture is not None and spec.capture.sample > 0 else None
    spool = spec.spool if spec.spool is not None and spec.spool.enabled else None
    if capture is None and spool is None:
        return None
    key = redaction_key(spec.hmac_key_file, os.environ)
    return CaptureConfig(
        endpoint=spec.endpoint,
        slot=spec.slot,
        version=spec.version,
        replica=spec.replica_name,
        captures_dir=capture.captures_dir if capture is not None else None,
        spool_dir=spool.dir if spool is not None else None,
        spool_max_age_s=spool.max_age_s if spool is not None else 900.0,
        spool_seal=spool_seal(spool.key_file, os.environ) if spool is not None and spool.encrypt else None,
        sample=capture.sample if capture is not None else 0.0,
        spool_personal=spool.personal if spool is not None else (),
        redaction=Redaction.of(capture.drop, capture.hash, key, capture.personal) if capture else Redaction(),
        paths=frozenset({"/invocations"}),
        body_bytes_max=2 * spec.max_body_bytes,
    )


def serve(spec: ReplicaSpec) -> int:
    """Run until a signal or a failed load; returns the exit status."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    app = ReplicaApp(spec)
    asgi: Any = app
    try:
        config = capture_config(spec)
    except (OSError, ValueError) as error:
        logger.error("Capture cannot be set up: %s", error)
        return 2
    if config is not None:
        recorder = Recorder(config)
        app.metrics.watch_capture(recorder.counts)
        asgi = CaptureMiddleware(app, recorder=recorder)
    server = QuietServer(
        uvicorn.Config(
            asgi,
            host=spec.host,
            port=spec.port,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, int(spec.drain_s)),
        )
    )
    process = _Process(spec, app, server)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(process.run())
    return process.status


class _Process:
    """The life of the process: load, serve, drain."""

    def __init__(self, spec: ReplicaSpec, app: ReplicaApp, server: uvicorn.Server) -> None:
        self._spec = spec
        self._app = app
        self._server = server
        self._draining: asyncio.Task[None] | None = None
        self.status = 0

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        # A daemon thread, not an executor: a load that hangs must not keep the process alive.
        threading.Thread(target=self._load, args=(loop,), name="load", daemon=True).start()
        await self._server.serve()

    def _stop(self) -> None:
        if self._draining is not None:  # asked twice: now
            self._server.force_exit = True
            self._server.should_exit = True
            return
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        """Unhealthy first, so that the gateway turns away; then finish what is in flight."""
        logger.info("Draining: %d requests in flight", self._app.in_flight)
        self._app.drain()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (waited := loop.time() - began) < self._spec.drain_s:
            if waited >= self._spec.lame_duck_s and self._app.in_flight == 0:
                break
            await asyncio.sleep(0.02)
        if self._app.in_flight:
            logger.warning(
                "%d requests were not finished within %g s", self._app.in_flight, self._spec.drain_s
            )
            self._server.force_exit = True
        self._server.should_exit = True

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: load and warm up, then hand over to the loop."""
        spec = self._spec
        try:
            from serving.replica.loading import load_model

            model = load_model(
                spec.uri,
                tracking_uri=spec.mlflow_tracking_uri,
                cache_dir=spec.model_cache_dir,
                model_dir=spec.model_dir,
            )
        except LoadFailed as error:
            logger.error("%s", error)
            status = (
                EXIT_REGISTRY_UNREACHABLE if isinstance(error, RegistryUnreachable) else EXIT_MODEL_FAILED
            )
            loop.call_soon_threadsafe(self._give_up, status)
        except BaseException:
            logger.exception("Loading %s failed", spec.uri)
            loop.call_soon_threadsafe(self._give_up, EXIT_MODEL_FAILED)
        else:
            loop.call_soon_threadsafe(self._ready, model)

    def _ready(self, model: ServedModel) -> None:
        gc.collect()
        gc.freeze()  # half a million objects of imports and model, which no collection needs to see again
        self._app.become_ready(model)
        logger.info("%s version %s is ready on port %d", self._spec.uri, self._spec.version, self._spec.port)

    def _give_up(self, status: int) -> None:
        self.status = status
        self._server.should_exit = True
