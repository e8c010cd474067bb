"""The launcher of one replica: fetches the version, starts its engine, opens its door, drains it.

It stays vLLM's parent. supervisord's SIGTERM reaches the launcher only, which first turns the
replica unhealthy, waits for what is in flight, and then ends vLLM. A killed launcher takes its
process group along at the next start, so no engine is left holding a GPU.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from configs.serving_runtime import Runtime
from serving.atomic import write_private
from serving.direct import DirectClient
from serving.llm.command import vllm_command, vllm_environment
from serving.llm.engine import read_engine
from serving.llm.errors import EngineFailed
from serving.llm.gpus import claim_gpus
from serving.llm.source import Source
from serving.llm.spec import LlmSpec
from serving.llm.warmup import answer_recent, probe

logger = logging.getLogger("interlock.llm")

_POLL_S = 0.2
_END_WAIT_S = 20.0


class Launcher:
    """One vLLM server and its life."""

    def __init__(self, spec: LlmSpec, source: Source) -> None:
        self._spec = spec
        self._source = source
        self._direct = DirectClient(spec.host)
        self._told = threading.Event()
        self._engine: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Serve until SIGTERM; returns the exit status. Raises LlmError where it cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        spec = self._spec
        spec.ready_file.unlink(missing_ok=True)
        write_private(spec.capture_file, json.dumps(capture_document(spec, "vllm")))
        vllm = spec.serving.vllm
        claim = claim_gpus(
            vllm.device,
            vllm.gpus,
            folder=spec.state_dir / "llm" / "gpus",
            environ=os.environ,
        )
        command = vllm_command(spec, self._source, claim)
        where = f"GPUs {', '.join(claim.devices)}" if claim.devices else "CPU"
        logger.info("Starting %s on %s", " ".join(command), where)
        try:
            self._engine = subprocess.Popen(
                command, env=vllm_environment(spec, claim, os.environ), pass_fds=claim.locks
            )
        except OSError as error:
            raise EngineFailed(
                f"{command[0]} cannot be started: {error}. Next: make vllm-env, or set "
                "serving.vllm.environment or serving.vllm.command."
            ) from error
        try:
            self._become_ready()
            while not self._told.wait(_POLL_S):
                self._check_alive()
            self._drain()
        finally:
            spec.ready_file.unlink(missing_ok=True)
            self._end()
        return 0

    def _on_signal(self, number: int, frame: object) -> None:
        del number, frame
        self._told.set()

    def _become_ready(self) -> None:
        deadline = time.monotonic() + self._spec.start_timeout_s
        while self._direct.get(self._spec.port, "/v1/models", timeout_s=5).status != 200:
            self._check_alive()
            if self._told.wait(_POLL_S):
                return
            if time.monotonic() > deadline:
                raise EngineFailed(
                    f"vLLM did not answer within {self._spec.start_timeout_s:g} s. Next: read the lines "
                    "above, or raise replicas.start_timeout_s."
                )
        probe(self._spec, self._direct)
        # behind a front the prompts come through it: with the version's own prompt before them
        answered = 0 if self._spec.part == "engine" else answer_recent(self._spec, self._direct, deadline)
        write_private(self._spec.ready_file, "vllm")
        logger.info("Ready on port %d after %d warm-up prompts", self._spec.port, 1 + answered)

    def _check_alive(self) -> None:
        assert self._engine is not None
        status = self._engine.poll()
        if status is not None and not self._told.is_set():
            raise EngineFailed(f"vLLM ended with status {status}. Next: read its lines above.")

    def _drain(self) -> None:
        """Unhealthy first, so that the gateway turns away; then what is in flight may finish."""
        spec = self._spec
        spec.ready_file.unlink(missing_ok=True)
        began = time.monotonic()
        while (waited_s := time.monotonic() - began) < spec.drain_s:
            if self._engine is not None and self._engine.poll() is not None:
                return
            gauges = read_engine(self._direct, spec.port)
            # an engine that is too busy to tell is not drained
            if waited_s >= spec.lame_duck_s and gauges is not None and gauges.running + gauges.waiting == 0:
                return
            time.sleep(_POLL_S)
        logger.warning("Requests were not finished within %g s", spec.drain_s)

    def _end(self) -> None:
        engine = self._engine
        if engine is None:
            return
        if engine.poll() is None:
            engine.terminate()
            try:
                engine.wait(_END_WAIT_S)
            except subprocess.TimeoutExpired:
                engine.kill()
                engine.wait()
        _kill_group()


def _kill_group() -> None:
    """End what vLLM left of itself: its engine is a process of its own, which outlives a killed server.

    Only where this process leads its group, as under supervisord: a group of somebody else's is not ours.
    """
    own = os.getpid()
    if os.getpgrp() != own:
        return
    for folder in Path("/proc").glob("[0-9]*"):
        number = int(folder.name)
        with contextlib.suppress(OSError):
            if number != own and os.getpgid(number) == own:
                os.kill(number, signal.SIGKILL)


def capture_document(spec: LlmSpec, runtime: Runtime) -> dict[str, object]:
    """What `CaptureConfig.from_mapping` takes; `runtime` is the version's, which says what a token costs."""
    capture = spec.capture if spec.capture is not None and spec.capture.sample > 0 else None
    spool = spec.spool if spec.spool is not None and spec.spool.enabled else None
    price = spec.serving.price_of(runtime)
    # an engine's front records; the middleware is only the engine's door then
    paths: dict[str, object] = {"paths": []} if spec.part == "engine" else {}
    return {
        **paths,
        "endpoint": spec.endpoint,
        "slot": spec.slot,
        "version": spec.version,
        "replica": spec.replica_name,
        "captures_dir": str(capture.captures_dir) if capture else None,
        "spool_dir": str(spool.dir) if spool else None,
        "spool_max_age_s": spool.max_age_s if spool else 900.0,
        "spool_encrypt": bool(spool and spool.encrypt),
        "spool_key_file": str(spool.key_file) if spool and spool.key_file else None,
        "sample": capture.sample if capture else 0.0,
        "drop": list(capture.drop) if capture else [],
        "hash": list(capture.hash) if capture else [],
        "personal": list(capture.personal) if capture else [],
        "spool_personal": list(spool.personal) if spool else [],
        "hmac_key_file": str(spec.hmac_key_file) if spec.hmac_key_file else None,
        "body_bytes_max": _RECORDED_BYTES_MAX,
        "measures_dir": str(spec.measures_dir),
        "per_token": price.per_token if price else None,
        "ready_file": str(spec.ready_file),
    }


_RECORDED_BYTES_MAX = 4 << 20
"""A stream spends some 250 bytes on a token: room for answers of 16,000 tokens."""
