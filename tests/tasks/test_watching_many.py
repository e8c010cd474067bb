"""Several endpoints watched in one run: none waits for another, and none is forgotten."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tasks.bench import Bench
from tasks.watching import watch
from tests.tasks.doubles import HandClock
from tests.tasks.test_watching import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def two_endpoints(world: World) -> tuple[Bench, Bench]:
    """The watched endpoint and another one that never served, each with a clock of its own."""
    slow, other = world.bench(), world.bench()
    other.policy = other.policy.model_copy(update={"endpoint": "other"})
    clock = HandClock(world.clock.now)
    other.clock, other.sleep = clock, clock.sleep
    return slow, other


def test_one_endpoints_long_look_does_not_keep_the_others_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = two_endpoints(world)
    went_on = threading.Event()
    observations = world.endpoint.observations

    def waits_for_the_other(*args: Any, **kwargs: Any) -> Any:
        assert went_on.wait(60), "the other endpoint was not looked at meanwhile"
        return observations(*args, **kwargs)

    monkeypatch.setattr(world.endpoint, "observations", waits_for_the_other)
    seen: dict[str, int] = {"flights": 0, "other": 0}
    for report in watch([slow, other], run_s=10):
        seen[report.endpoint] += 1
        if seen["other"] == 5:  # its own time was over after three looks
            went_on.set()
    assert seen["flights"] == 3
    assert seen["other"] >= 5


def test_an_endpoint_with_a_fault_that_nobody_foresaw_is_reported_and_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, other = two_endpoints(world)

    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody thought of it")

    monkeypatch.setattr(world.endpoint, "observations", breaks)
    reports = list(watch([broken, other], run_s=10))
    assert [(one.outcome, one.reason) for one in reports if one.endpoint == "flights"] == [
        ("ERROR", "ZeroDivisionError: nobody thought of it")
    ]
    assert len([one for one in reports if one.endpoint == "other"]) >= 3


def test_the_next_run_tells_that_nobody_looked_for_long(world: World) -> None:
    def gaps() -> list[str]:
        lines = world.journal.audit("flights", what=("alert",))
        return [line.details["message"] for line in lines if "did not look" in line.details["message"]]

    world.watched()
    world.clock.now += 60
    list(watch([world.bench()], run_s=0))
    assert gaps() == []
    world.clock.now += 600
    list(watch([world.bench()], run_s=0))
    assert gaps() == ["the watch did not look for 600 s; it goes on now"]


def test_a_run_looks_as_often_as_the_policy_says(world: World) -> None:
    bench = world.bench()
    bench.sleep = lambda seconds: world.seconds(round(seconds))
    reports = list(watch([bench], run_s=30))
    assert len(reports) == 7
    assert [report.requests for report in reports] == [0, *[250] * 6]


def test_whoever_stops_listening_does_not_wait_until_the_time_is_over(world: World) -> None:
    """So ends a flow run that is cancelled, and a stack that is taken down."""
    slow, other = two_endpoints(world)
    began, run_s = other.clock(), 5_000
    reports = watch([slow, other], run_s=run_s)
    next(reports)
    reports.close()  # type: ignore[attr-defined]
    assert other.clock() - began < run_s
