"""Environments beside production: nothing is released to them, whoever asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.settings import Settings
from serving.errors import Refused
from tasks.bench import Bench
from tasks.control import start_release
from tasks.environments import compare
from tasks.release import open_release
from tests.configs.policies import VALID
from tests.tasks.doubles import MemoryRegistry


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "flights.yaml").write_text(VALID + "environments: {staging: {}, development: {}}\n")
    return Settings(state_dir=tmp_path / "state", policy_dir=tmp_path)


@pytest.mark.parametrize("environment", ["staging", "development"])
def test_nothing_is_released_to_an_environment(settings: Settings, environment: str) -> None:
    """The registry's aliases are production's: a promotion elsewhere would move them."""
    name = f"flights-{environment}"
    with pytest.raises(
        Refused, match=rf"environment of flights.*Next: interlock release flights 3, .*{name} 3"
    ):
        start_release(settings, name, 3)
    opened = Bench.open(name, settings)
    registry = MemoryRegistry(aliases={"champion": "1"})
    bench = Bench(opened.policy, settings, registry=registry)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="environment of flights"):
        open_release(bench, "3", again=False, reason="", flow_run_id="run", owner="me")
    assert bench.journal.open_release(name) is None
    assert registry.aliases == {"champion": "1"}


def test_production_is_released_to(settings: Settings) -> None:
    bench = Bench(Bench.open("flights", settings).policy, settings, registry=MemoryRegistry())  # type: ignore[arg-type]
    made = open_release(bench, "3", again=False, reason="", flow_run_id="run", owner="me")
    assert bench.journal.open_release("flights") == made.row


@pytest.mark.parametrize(
    ("asked", "words"), [("stagin", "'stagin'; did you mean staging? It has: "), ("xyz", "'xyz'. It has: ")]
)
def test_an_environment_that_is_not_there_is_refused_in_whole_sentences(
    settings: Settings, asked: str, words: str
) -> None:
    with pytest.raises(Refused) as refused:
        compare(settings, "flights", asked, "production")
    assert f"its policy has no environment {words}" in str(refused.value)
