"""The release flow, unchanged, on a platform without leases that only counts by the minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness

from flows.release import release_model
from serving.fake import FakeMetered
from tasks.bench import Bench
from tests.flows.world import Version, World, failing

pytestmark = pytest.mark.slow
CANARY = {"look_every_s": 10, "lease_s": 180, "bake_s": 120, "soak_s": 240, "ask_after_s": 36_000}


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, requests_per_s=10, platform=FakeMetered)
    canary = made.policy.canary.model_copy(update=CANARY)
    made.policy = made.policy.model_copy(update={"canary": canary, "assign_by": "request"})
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    assert run("1").name == "Promoted"
    made.sleep(600)
    return made


def run(version: str) -> State:
    return release_model("flights", int(version), return_state=True)


def test_a_good_version_is_promoted_by_counts(world: World) -> None:
    world.add("2", Version(skill=1.0))
    state = run("2")
    assert state.name == "Promoted", state.message
    looks = world.journal.looks(world.newest().id, "canary")
    counted = [group for look in looks[1:] for group in look.stats["groups"]]
    assert {group["pi"] for group in counted} == {0.05, 0.25, 0.5, 0.95}
    assert sum(look.stats["left_out"] for look in looks[1:]) > 0, "minutes of two shares are no evidence"


def test_a_version_that_fails_under_live_traffic_is_rolled_back_by_counts(world: World) -> None:
    world.add("2", Version())

    def worsen() -> None:
        if world.serving()[1] > 0:
            world.versions["2"].answer = failing(0.3)

    world.on_second = worsen
    state = run("2")
    assert (state.name, world.newest().decided_stage) == ("Rejected", "canary"), state.message
    assert world.serving() == ("1", 0)
