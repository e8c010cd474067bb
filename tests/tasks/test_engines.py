"""The engine's gauges as a gate of the ramp."""

from __future__ import annotations

import pytest

from configs.serving_runtime import EngineLimits
from serving.llm.engine import EngineGauges
from tasks.engines import objection

BUSY = {"replica-1": EngineGauges(3, 0, 0.2), "replica-2": EngineGauges(9, 5, 0.95)}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, ""),
        ({"waiting": 5, "kv_cache": 0.95}, ""),
        ({"waiting": 4}, "replica-2: 5 requests wait in the engine, the policy allows 4"),
        ({"kv_cache": 0.9}, "replica-2: 95% of the KV cache is in use, the policy allows 90%"),
    ],
)
def test_one_replica_above_a_limit_is_enough(limits: dict[str, float], words: str) -> None:
    assert objection(BUSY, EngineLimits.model_validate(limits)) == words
