"""The table of policy keys is complete and true."""

from __future__ import annotations

import pytest

from configs.keys import key_path, nearest_key, policy_keys
from configs.policy import Policy
from tests.configs.policies import (
    generation_content,
    valid_content,
    vertex_content,
    whole_sagemaker,
    whole_serving,
)


def test_every_key_is_documented() -> None:
    undocumented = [key.path for key in policy_keys() if len(key.description) < 5]
    assert undocumented == []


def test_keys_are_those_of_a_whole_policy() -> None:
    """What a fully written policy has as leaves is what the table lists."""
    content = valid_content()
    content |= {
        "replicas": {"batch": {"max_rows": 3}},
        "drift": {},
        "watch": {"measures": {"ttft_ms": {"budget": {"p95": 800}}}},
        "labels": {},
        "canary": {"measures": {"ttft_ms": {}}, "quality": {}},
        "drill": {},
        "load_test": {"rate_per_s": 1},
        "sagemaker": whole_sagemaker(),
        "vertex": vertex_content(vllm={}),
        "serving": whole_serving(),
    }
    content["prompt"] = {"name": "support"}
    content["shadow"]["text"] = {"embeddings": {"url": "http://127.0.0.1:9/v1", "model": "e"}}
    content["evaluation"] |= {
        "slices": [{"column": "c", "metric": "mae", "margin": 0.1}],
        "cost": {"per_call_usd": 0.1, "max_usd": 1},
        "fresh": {"max_age_s": 1},
    }

    def leaves(value: object, path: str = "") -> set[str]:
        if isinstance(value, dict) and value:
            return set().union(
                *(leaves(inner, f"{path}.{name}" if path else name) for name, inner in value.items())
            )
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return leaves(value[0], f"{path}[]")
        return {path}

    texts = content | {"evaluation": generation_content()}
    dumps = [Policy.model_validate(one).model_dump(mode="json") for one in (content, texts)]
    for dump in dumps:
        for section in ("canary", "watch"):
            dump[section]["measures"] = {"NAME": dump[section]["measures"]["ttft_ms"]}
    found = [leaves(dump) for dump in dumps]
    assert set().union(*found) == {key.path for key in policy_keys() if not key.is_section}


def test_words_for_types_and_limits() -> None:
    by_path = {key.path: key for key in policy_keys()}
    assert by_path["canary.lease_s"].takes == "a number, at least 3"
    assert by_path["canary.lease_s"].default == "30"
    assert by_path["assign_by"].takes == "user or request"
    assert by_path["canary.steps"].default == "[5, 25, 50, 95]"
    assert by_path["evaluation.metrics[].name"].default == "required"
    assert by_path["replicas.batch"].is_section
    assert by_path["drift.thresholds.columns"].takes == "a mapping of text to a number"


@pytest.mark.parametrize(
    ("location", "nearest"),
    [
        (("canary", "leases_s"), "canary.lease_s"),
        (("canary", "measures", "ttft_ms", "tolerence"), "canary.measures.ttft_ms.tolerance"),
        (("evaluation", "metrics", 1, "nme"), "evaluation.metrics[1].name"),
        (("concurency",), "replicas.concurrency"),
        (("evaluation", "generation", "scorers", 0, "knd"), "evaluation.scorers[0].kind"),
        (("zzzz",), None),
    ],
)
def test_nearest_key(location: tuple[str | int, ...], nearest: str | None) -> None:
    assert nearest_key(location) == nearest


def test_key_path() -> None:
    assert key_path(("a", 0, "b", "c", 2)) == "a[0].b.c[2]"
