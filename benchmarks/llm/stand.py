"""One engine, asked round its capture, through it, and through the gateway before it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.cores import cpu_s, family, find_children, find_server, pin
from benchmarks.gateway.subjects import free_port, started
from benchmarks.llm.switch import AROUND, SwitchedCapture
from configs.policy import Policy
from configs.settings import Settings
from examples.support_bot.models import VLLM_PYTHON, make_weights
from serving.endpoint import Route, Slot
from serving.gateway.keys import Keys
from serving.gateway.process import gateway_program
from serving.gateway.render import refresh_gateway
from serving.local import LocalEndpoint
from serving.slots import SlotFiles
from serving.supervision import Supervisor
from tests.serving.llm.bare import await_models, bare_engine

NAME = "chat"
_START_WAIT_S = 500.0
_UP_WAIT_S = 60.0
_ENGINE_TITLE = "VLLM::EngineCore"
_ROOT = Path(__file__).parents[2]
_FLAGS = ("--max-model-len", "512", "--dtype", "float32", "--enforce-eager", "--disable-uvicorn-access-log")
_POLICY = {
    "endpoint": NAME,
    "model": NAME,
    "owner": "nobody",
    "access": {"rate_per_s": 100_000},
    "replicas": {"start_timeout_s": _START_WAIT_S, "request_timeout_s": 120, "concurrency": 64},
    "serving": {"runtime": "vllm", "price": {"input_per_million": 1, "output_per_million": 2}},
    "evaluation": {"data": "x.csv", "label": "y", "task": "regression", "metrics": [{"name": "mae"}]},
    "shadow": {"score_tolerance": 0.1},
}


@dataclass(frozen=True, slots=True)
class Subject:
    """Where a client of the OpenAI API finds one of them. `pids` stand between it and the engine's core."""

    name: str
    base_url: str
    pids: tuple[int, ...]
    headers: Mapping[str, str] = field(default_factory=dict)

    def cpu_s(self) -> float:
        """CPU seconds of vLLM's API server, and of the gateway where it is in between, so far."""
        return cpu_s(self.pids)


@contextmanager
def lineup(folder: Path, layers: int, *, own_core: bool) -> Iterator[tuple[Subject, ...]]:
    """vLLM itself, the same with capture, then that behind the gateway; all end with the context.

    `own_core`: the engine computes on the last core, and everything else, this process too, on the others.
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
    weights = make_weights(folder / "weights", 1, layers=layers)
    with ExitStack() as stack:
        url = stack.enter_context(
            bare_engine(
                (str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server"),
                weights,
                NAME,
                folder / "vllm.log",
                *(*_FLAGS, "--middleware", f"{SwitchedCapture.__module__}.{SwitchedCapture.__name__}"),
                variables={"PYTHONPATH": str(_ROOT), "INTERLOCK_CAPTURE": json.dumps(_capture(settings))},
            )
        )
        port = urlsplit(url).port
        assert port is not None
        await_models(url, _START_WAIT_S)
        gateway = _gateway(stack, settings, port)
        if own_core:
            (engine,) = find_children(_ENGINE_TITLE, str(folder))
            for process in family(engine):  # its worker computes
                pin(process, {engine_core})
        server = find_server(port)
        yield (
            Subject("vLLM itself", url, (server,), {AROUND: "1"}),
            Subject("with capture", url, (server,)),
            Subject(
                "with capture and gateway",
                f"{settings.gateway_url}/{NAME}/v1",
                (server, *gateway),
                {"authorization": f"Bearer {Keys(settings).create('bench')}"},
            ),
        )


def _capture(settings: Settings) -> dict[str, object]:
    """What a replica's launcher would tell the middleware: all that is recorded by default."""
    return {
        "endpoint": NAME,
        "slot": Slot.BLUE.value,
        "version": "1",
        "replica": f"{NAME}-blue-0",
        "captures_dir": str(settings.captures_dir / NAME),
        "spool_dir": str(settings.spool_dir / NAME / Slot.BLUE.value),
        "measures_dir": str(settings.measures_dir / NAME),
        "per_token": [1e-6, 2e-6],
    }


def _gateway(stack: ExitStack, settings: Settings, port: int) -> tuple[int, ...]:
    """Our gateway before that engine; its processes."""
    policy = Policy.model_validate(_POLICY)
    files = SlotFiles(settings)
    record = files.reserve(NAME, Slot.BLUE, "1", "models:/m-1", 1)
    files.write(replace(record, ready=True, replicas=(replace(record.replicas[0], port=port),)))
    refresh_gateway(settings, [policy])
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    process = started(stack, list(gateway_program(settings).command), settings.gateway_port)
    endpoint = LocalEndpoint(NAME, policy, settings, Supervisor(settings))
    deadline = time.monotonic() + _UP_WAIT_S
    while not any(one.healthy for one in endpoint.describe().replicas[Slot.BLUE]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the gateway did not find the engine healthy within {_UP_WAIT_S:g} s")
        time.sleep(0.1)
    endpoint.apply(Route(NAME, 1, Slot.BLUE, "1"))
    return family(process.pid)
