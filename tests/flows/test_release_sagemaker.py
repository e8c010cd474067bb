"""The release flow on SageMaker's double: what goes wrong there, with time by hand.

Promotion and rollback on both managed platforms are in tests/e2e/test_release_for_real.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness

from flows.release import release_model
from serving.records import ReleaseState
from serving.sagemaker import clients
from tasks import transitions
from tasks.bench import Bench
from tasks.guarding import guard
from tests.doubles.aws.cloud import Cloud
from tests.doubles.aws.wire import Fault
from tests.flows.sagemaker_world import MINUTE_S, SageMakerWorld
from tests.flows.world import Version
from tests.tasks.doubles import Killed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
THROTTLED = Fault("ThrottlingException", "Rate exceeded")
EXPIRED = Fault("ExpiredTokenException", "The security token included in the request is expired", 403)


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMakerWorld]:
    """Version 1 serves, and has served for a while."""
    cloud = Cloud(really_waits=False)
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "_ATTEMPTS", 1)  # boto3's own pauses are real seconds
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


@pytest.mark.e2e
def test_missing_capacity_interrupts_and_the_same_command_goes_on(world: SageMakerWorld) -> None:
    world.add("2", Version())
    world.cloud.no_capacity.add("ml.m5.large")
    state = run("2")
    assert state.name == "Interrupted"
    assert state.message is not None
    assert "InsufficientInstanceCapacity" in state.message
    assert "sagemaker.instance_types" in state.message
    assert (world.serving(), world.slots()) == (("1", 0), ("1", ""))
    assert world.newest().state is ReleaseState.INTERRUPTED
    world.cloud.no_capacity.clear()
    assert run("2").name == "Promoted"


@pytest.mark.e2e
def test_an_update_that_is_silently_taken_back_is_seen(world: SageMakerWorld) -> None:
    world.add("2", Version())
    world.cloud.silent_rollback = True
    state = run("2")
    assert state.name == "Interrupted"
    assert state.message is not None
    assert "SageMaker took it back: One or more configured alarms" in state.message
    assert (world.serving(), world.slots()) == (("1", 0), ("1", ""))


@pytest.mark.parametrize(
    "trouble", ["throttled for a minute", "busy for five minutes", "weights not followed"]
)
def test_a_ramp_outlives_passing_trouble(world: SageMakerWorld, trouble: str) -> None:
    world.add("2", Version())

    def begin() -> None:
        until = world.clock.now + (60 if trouble.startswith("throttled") else 300)
        if trouble.startswith("throttled"):
            world.cloud.fail_while(lambda: world.clock.now < until, THROTTLED)
        elif trouble.startswith("busy"):
            found = world.cloud.sagemaker.endpoints["flights"]
            found.status, found.ready_at = "Updating", until
            found.pending = {"weights": {name: one.weight for name, one in found.variants.items()}}
        else:
            world.cloud.fail(
                "UpdateEndpointWeightsAndCapacities", Fault("InternalFailure", "sorry", 500), times=2
            )

    when_the_share_is(world, 500, begin)
    state = run("2")
    assert state.name == "Promoted", state.message
    assert world.serving() == ("2", 0)


@pytest.mark.e2e
def test_credentials_that_expire_interrupt_and_the_guard_returns_the_share(world: SageMakerWorld) -> None:
    world.add("2", Version())
    expired: list[bool] = []
    world.cloud.fail_while(lambda: bool(expired), EXPIRED)
    when_the_share_is(world, 2500, lambda: expired.append(True))
    state = run("2")
    assert state.name == "Interrupted"
    assert state.message is not None
    assert "ExpiredTokenException" in state.message
    found = world.cloud.sagemaker.endpoints["flights"]
    assert found.variants["green-v2"].weight == 2500, "nobody could take it back"
    expired.clear()
    said = guard(world.bench())
    assert "25%" in said
    assert world.serving() == ("1", 0)
    assert guard(world.bench()) == ""


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


@pytest.mark.e2e
def test_a_rollback_between_whose_calls_the_process_dies_is_finished_by_whoever_comes_next(
    world: SageMakerWorld,
) -> None:
    world.add("2", Version())

    def die() -> None:
        raise Killed

    when_the_share_is(world, 2500, die)
    with pytest.raises(Killed):
        run("2")
    world.on_second = lambda: None
    release = world.newest()
    world.cloud.fail("UpdateEndpointWeightsAndCapacities", Fault("InternalFailure", "sorry", 500))
    with pytest.raises(Exception, match="InternalFailure"):
        transitions.make_safe(world.bench(), release, who="test", reason="its flow run died")
    assert world.serving() == ("1", 2500), "the tag was written, the weights were not"
    assert guard(world.bench()) != ""
    assert world.serving() == ("1", 0)
