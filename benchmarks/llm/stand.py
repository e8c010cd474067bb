"""One set of weights, served three times: twice by vLLM alone, once with capture, with and without gateway.

Two engines of the same making differ by some per cent on one machine; the second one shows by how much.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.cores import cpu_s, family, find_children, find_server, pin
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
from tests.serving.llm.bare import await_models, bare_engine

NAME = "chat"
_START_WAIT_S = 500.0
_ENGINES = 3
_ENGINE_TITLE = "VLLM::EngineCore"
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
    """Where a client of the OpenAI API finds one of them. `pids` stand between it and the engine's core."""

    name: str
    base_url: str
    api_key: str
    pids: tuple[int, ...]

    def cpu_s(self) -> float:
        """CPU seconds of vLLM's API server, and of the gateway where it is in between, so far."""
        return cpu_s(self.pids)


@contextmanager
def lineup(folder: Path, layers: int, *, own_core: bool) -> Iterator[tuple[Subject, ...]]:
    """vLLM itself, another, one with capture, then that behind the gateway; all end with the context.

    `own_core`: the engines compute on the last core, and everything else, this process too, on the others.
    """
    others = sorted(os.sched_getaffinity(0))
    engine_core = others.pop()
    if own_core:
        if not others:
            raise SystemExit("--own-core needs two cores. Next: run it without")
        pin(os.getpid(), others)
    settings = Settings(
        state_dir=folder / "state", gateway_port=free_port(), gateway_metrics_port=free_port()
    )
    model = settings.state / "models" / "m-1"
    weights = make_weights(model / "artifacts" / "weights", 1, layers=layers)
    (model / "MLmodel").write_text("metadata: {}\n")
    supervisor = Supervisor(settings)
    command = (str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server")
    flags = (
        "--max-model-len",
        "512",
        "--dtype",
        "float32",
        "--enforce-eager",
        "--disable-uvicorn-access-log",
    )
    with ExitStack() as stack:
        stack.callback(supervisor.shutdown)
        alone, again = (
            stack.enter_context(bare_engine(command, weights, NAME, folder / f"vllm-{one}.log", *flags))
            for one in range(2)
        )
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
        for url in (alone, again):
            await_models(url, _START_WAIT_S)
        if own_core:
            engines = find_children(_ENGINE_TITLE, str(folder))
            if len(engines) != _ENGINES:
                raise RuntimeError(f"{_ENGINES} engines were expected, {len(engines)} are there: {engines}")
            for engine in engines:
                pin(engine, {engine_core})
        port = next(one.replicas[0].port for one in SlotFiles(settings).every() if one.slot is Slot.BLUE)
        captured = f"http://{settings.host}:{port}/v1"
        gateway = family(supervisor.processes()[gateway_program(settings).name].pid)
        yield (
            *(_direct(name, url) for name, url in (("vLLM itself", alone), ("vLLM itself, another", again))),
            _direct("with capture", captured),
            Subject(
                "with capture and gateway",
                f"{settings.gateway_url}/{NAME}/v1",
                key,
                (find_server(port), *gateway),
            ),
        )


def _direct(name: str, url: str) -> Subject:
    port = urlsplit(url).port
    assert port is not None
    return Subject(name, url, "none", (find_server(port),))
