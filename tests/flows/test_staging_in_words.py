"""A pair of model and prompt through staging: the real gateway, Locust, and a stand-in of vLLM.

Production is in memory; what is proven is that staging asks what clients would ask, where they ask it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.policy import Policy
from flows.release import release_model
from serving.local import LocalEndpoint
from tasks import staging
from tasks.bench import Bench
from tests.flows.test_generation_release import knows
from tests.flows.world import World
from tests.serving.gateway.lab import Lab, lab_settings
from tests.serving.llm.conftest import chat_policy, put_version
from tests.serving.llm.prompts import RegistryOfPrompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("staging in words"),
    pytest.mark.usefixtures("prefect_server"),
]
LOAD: dict[str, Any] = {
    "rate_per_s": 10,
    "duration_s": 2,
    "warm_up_s": 0,
    "search_max_rate": 1,
    "latency_ms": {"p95": 20_000},
}
SOURCE = "s3://weights/7"
TEMPLATES: dict[tuple[str, str], Any] = {("manner", "1"): "Be kind.", ("manner", "2"): "Always fail."}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with RegistryOfPrompts(TEMPLATES, models={("late", "7"): SOURCE}) as mlflow:
        made = Lab(lab_settings(tmp_path_factory.mktemp("staging"), mlflow_tracking_uri=mlflow.url))
        try:
            made.up()
            put_version(made, "7")
            cache = made.settings.state / "models"
            (cache / hashlib.sha256(SOURCE.encode()).hexdigest()[:32]).symlink_to(cache / "m-7")
            yield made
        finally:
            made.down()


@pytest.fixture
def world(tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> World:
    """An endpoint of pairs that nothing serves yet, whose staging is the lab."""
    made = World(tmp_path)
    rows = [{"prompt": f"question {i}", "reference": f"answer {i}"} for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = made.policy.model_dump(mode="json") | chat_policy() | {"prompt": {"name": "manner"}}
    content["evaluation"] = {
        "task": "generation",
        "data": str(tmp_path / "prompts.jsonl"),
        "min_prompts": 20,
        "scorers": [{"kind": "exact_match", "min": 0.5}],
    }
    content["shadow"] = {"enabled": False, "reason": "words differ"}
    content["environments"] = {"staging": {"load_test": LOAD}}
    made.policy = Policy.model_validate(content)

    def there(policy: Policy, bench: Bench) -> Bench:
        endpoint = LocalEndpoint(policy.endpoint, policy, lab.settings, lab.supervisor)
        return Bench(policy, lab.settings, endpoint=endpoint, registry=bench.registry, runs=bench.runs)

    monkeypatch.setattr(staging, "open_staging", there)
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    return made


def test_a_pair_is_asked_its_prompts_in_staging(world: World, lab: Lab) -> None:
    for version in ("7+p1", "7+p2"):
        world.add(version, knows(1.0))
    assert release_model("flights", 7, prompt=1, return_state=True).name == "Promoted"
    stored = world.newest().verdicts["stage"]
    assert stored["outcome"] == "PASS"
    assert "5 requests answered" in [one["reason"] for one in stored["findings"]]
    answered = [(line["version"], line["status"]) for line in lab.log_lines()]
    assert answered == [("7+p1", "200")] * (LOAD["rate_per_s"] * LOAD["duration_s"])

    world.clock.now += 60
    state = release_model("flights", prompt=2, return_state=True)
    assert state.name == "Rejected"
    assert "smoke test: 5 of 5 requests were answered 500" in str(state.message)
    assert world.serving() == ("7+p1", 0)
