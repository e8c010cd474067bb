"""A platform without leases: a dead release's share stays until the guard takes it back.

Whole releases on both doubles are in tests/e2e/test_release_for_real.py, troubles in test_platform_faults.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.release import release_model
from tasks.bench import Bench
from tasks.guarding import guard
from tests.doubles.aws.cloud import Cloud
from tests.flows.sagemaker_world import MINUTE_S, SageMakerWorld
from tests.flows.world import Version
from tests.tasks.doubles import Killed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMakerWorld]:
    """Version 1 serves, and has served for a while."""
    cloud = Cloud(really_waits=False)
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    made = SageMakerWorld(tmp_path, cloud)
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    first = run("1")
    assert first.name == "Promoted", first.message
    made.sleep(15 * MINUTE_S)
    yield made
    cloud.close()


def run(version: str, **parameters: Any) -> State:
    return release_model("flights", int(version), return_state=True, **parameters)


def when_the_share_is(world: SageMakerWorld, share_bp: int, then: Any) -> None:
    """Do something once, in the second in which the candidate first has this share."""
    done: list[bool] = []

    def look() -> None:
        found = world.cloud.sagemaker.endpoints["flights"]
        weights = {name: one.weight for name, one in found.variants.items()}
        if not done and weights.get("green-v2") == share_bp:
            done.append(True)
            then()

    world.on_second = look


def test_a_killed_run_leaves_a_share_that_the_guard_returns_once_it_ran_out(world: SageMakerWorld) -> None:
    world.add("2", Version())

    def die() -> None:
        raise Killed

    when_the_share_is(world, 2500, die)
    with pytest.raises(Killed):
        run("2")
    world.on_second = lambda: None
    assert world.serving() == ("1", 2500)
    assert guard(world.bench()) == "", "the lease still holds"
    world.sleep(6 * MINUTE_S)
    assert "went back to the champion" in guard(world.bench())
    assert world.serving() == ("1", 0)
