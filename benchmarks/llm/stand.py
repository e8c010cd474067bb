"""One set of weights, served twice: by vLLM alone, and by vLLM with capture, without and with the gateway."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cores import find_children, pin
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
_ENGINES = 2
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
    """Where a client of the OpenAI API finds one of them."""

    name: str
    base_url: str
    api_key: str


@contextmanager
def lineup(folder: Path, layers: int, *, own_core: bool) -> Iterator[tuple[Subject, ...]]:
    """vLLM itself, then the same with capture, then that behind the gateway; all end with the context.

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
        alone = stack.enter_context(bare_engine(command, weights, NAME, folder / "vllm.log", *flags))
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
        await_models(alone, _START_WAIT_S)
        if own_core:
            engines = find_children(_ENGINE_TITLE, str(folder))
            if len(engines) != _ENGINES:
                raise RuntimeError(f"{_ENGINES} engines were expected, {len(engines)} are there: {engines}")
            for engine in engines:
                pin(engine, {engine_core})
        port = next(one.replicas[0].port for one in SlotFiles(settings).every() if one.slot is Slot.BLUE)
        yield (
            Subject("vLLM itself", alone, "none"),
            Subject("with capture", f"http://127.0.0.1:{port}/v1", "none"),
            Subject("with capture and gateway", f"{settings.gateway_url}/{NAME}/v1", key),
        )
