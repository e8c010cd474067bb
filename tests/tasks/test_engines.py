"""The engine's gauges as a gate of the ramp."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.policy import Policy
from configs.serving_runtime import EngineLimits
from configs.settings import Settings
from serving.endpoint import Slot
from serving.llm.engine import EngineGauges, parse_engine
from serving.local import LocalEndpoint
from serving.slots import SlotFiles, SlotRecord, SlotReplica
from serving.supervision import Supervisor
from tasks.engines import objection
from tests.configs.policies import valid_content
from tests.serving.stack.conftest import free_ports

BUSY: dict[str, EngineGauges | None] = {
    "replica-1": EngineGauges(3, 0, 0.2),
    "replica-2": EngineGauges(9, 5, 0.95),
}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"waiting": 5, "kv_cache": 0.95}, ""),
        ({"waiting": 4}, "replica-2: 5 requests wait in the engine, the policy allows 4. Next: wait, "),
        ({"kv_cache": 0.9}, "replica-2: 95% of the KV cache is in use, the policy allows 90%. Next: wait, "),
    ],
)
def test_one_replica_above_a_limit_is_enough(limits: dict[str, float], words: str) -> None:
    said = objection(BUSY, EngineLimits.model_validate(limits))
    assert said.startswith(words)
    assert bool(said) == bool(words)


def test_an_engine_that_does_not_tell_is_an_objection_where_there_are_limits() -> None:
    silent: dict[str, EngineGauges | None] = {"replica-1": EngineGauges(0, 0, 0.0), "replica-2": None}
    limits = EngineLimits(waiting=4)
    assert objection(silent, limits).startswith("replica-2 does not tell its engine's gauges")
    assert "interlock logs replica-2" in objection(silent, limits)
    assert objection({}, limits).startswith("no replica tells")
    assert objection(silent, EngineLimits()) == ""
    assert objection({}, EngineLimits()) == ""
    assert objection(BUSY, EngineLimits()) == ""


WHOLE = (
    'vllm:num_requests_running{engine="0"} 3.0\n'
    'vllm:num_requests_waiting{engine="0"} 1.0\n'
    'vllm:kv_cache_usage_perc{engine="0"} 0.5\n'
)


@pytest.mark.parametrize(
    ("text", "gauges"),
    [
        (WHOLE, EngineGauges(3, 1, 0.5)),
        (WHOLE + WHOLE.replace('"0"', '"1"').replace("0.5", "0.75"), EngineGauges(6, 2, 0.75)),
        (WHOLE.replace("vllm:kv_", "vllm:gpu_"), EngineGauges(3, 1, 0.5)),
        (WHOLE.replace("vllm:kv_cache_usage_perc", "vllm:else"), None),
        (WHOLE.replace("vllm:num_requests_waiting", "vllm:else"), None),
        (WHOLE.replace("0.5", "NaN"), None),
        (WHOLE.replace("0.5", "much"), None),
        ("", None),
    ],
)
def test_gauges_are_known_whole_or_not_at_all(text: str, gauges: EngineGauges | None) -> None:
    assert parse_engine(text) == gauges


def test_a_replica_that_is_not_there_tells_nothing_and_is_not_left_out(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    replicas = tuple(SlotReplica(f"replica-{port}", port) for port in free_ports(2))
    SlotFiles(settings).write(SlotRecord("support", Slot.GREEN, "2", "models:/m-2", replicas, ready=True))
    policy = Policy.model_validate(valid_content() | {"serving": {"runtime": "vllm"}})
    endpoint = LocalEndpoint("support", policy, settings, Supervisor(settings))
    assert endpoint.engines() == {Slot.BLUE: {}, Slot.GREEN: dict.fromkeys([one.name for one in replicas])}
