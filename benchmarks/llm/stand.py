"""One set of weights, served twice: by vLLM alone, and by vLLM with capture, without and with the gateway."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.subjects import free_port
from configs.policy import Policy
from configs.settings import Settings
from examples.support_bot.models import VLLM_PYTHON, make_weights
from serving.endpoint import Route, Slot
from serving.gateway.keys import Keys
from serving.gateway.places import gateway_runtime
from serving.gateway.process import gateway_program
from serving.gateway.render import refresh_gateway
from serving.local import LocalEndpoint
from serving.slots import SlotFiles
from serving.supervision import Supervisor

NAME = "chat"
_START_WAIT_S = 500.0
_POLICY = {
    "endpoint": NAME,
    "model": NAME,
    "owner": "nobody",
    "access": {"rate_per_s": 100_000},
    "replicas": {"start_timeout_s": _START_WAIT_S, "request_timeout_s": 120, "concurrency": 64},
    "serving": {
        "runtime": "vllm",
        "vllm": {
            "device": "cpu",
            "dtype": "float32",
            "max_length": 512,
            "kv_cache_gib": 1,
            "options": {"enforce-eager": True},
        },
        "price": {"input_per_million": 1, "output_per_million": 2},
    },
    "evaluation": {"data": "x.csv", "label": "y", "task": "regression", "metrics": [{"name": "mae"}]},
    "shadow": {"score_tolerance": 0.1},
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Where a client of the OpenAI API finds one of them."""

    name: str
    base_url: str
    api_key: str


@contextmanager
def lineup(folder: Path, layers: int) -> Iterator[tuple[Subject, ...]]:
    """vLLM itself, then the same with capture, then that behind the gateway; all end with the context."""
    settings = Settings(
        state_dir=folder / "state", gateway_port=free_port(), gateway_metrics_port=free_port()
    )
    model = settings.state / "models" / "m-1"
    weights = make_weights(model / "artifacts" / "weights", 1, layers=layers)
    (model / "MLmodel").write_text("metadata: {}\n")
    supervisor = Supervisor(settings)
    alone, process = _vllm_alone(weights, folder / "vllm.log")
    try:
        refresh_gateway(settings)
        key = Keys(settings).create("bench")
        supervisor.start_daemon()
        supervisor.ensure(gateway_program(settings))
        deadline = time.monotonic() + 60
        while not gateway_runtime(settings).is_up() and time.monotonic() < deadline:
            time.sleep(0.05)
        endpoint = LocalEndpoint(NAME, Policy.model_validate(_POLICY), settings, supervisor)
        endpoint.deploy(Slot.BLUE, "1", uri="models:/m-1")
        endpoint.apply(Route(NAME, 1, Slot.BLUE, "1"))
        _await(f"{alone.base_url}/models")
        port = next(one.replicas[0].port for one in SlotFiles(settings).every() if one.slot is Slot.BLUE)
        yield (
            alone,
            Subject("with capture", f"http://127.0.0.1:{port}/v1", "none"),
            Subject("with capture and gateway", f"{settings.gateway_url}/{NAME}/v1", key),
        )
    finally:
        process.terminate()
        supervisor.shutdown()
        process.wait(30)


def _vllm_alone(weights: Path, log: Path) -> tuple[Subject, subprocess.Popen[bytes]]:
    port = free_port()
    command = [str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights)]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--max-model-len", "512", "--dtype", "float32", "--disable-uvicorn-access-log"]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=out, stderr=out)
    return Subject("vLLM itself", f"http://127.0.0.1:{port}/v1", "none"), process


def _await(url: str) -> None:
    deadline = time.monotonic() + _START_WAIT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 (loopback)
                json.load(reply)
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not answer within {_START_WAIT_S:g} s") from error
            time.sleep(0.5)
