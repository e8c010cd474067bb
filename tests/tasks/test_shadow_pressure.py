"""The shadow's brake: replays pause while the champion's live requests are slower than before."""

from __future__ import annotations

import pytest

from serving.endpoint import Reply, Route, Slot
from serving.fake import FakeEndpoint
from tasks.shadowing import Pressure
from tests.tasks.doubles import HandClock


@pytest.fixture
def endpoint() -> FakeEndpoint:
    made = FakeEndpoint("flights", clock=HandClock())
    made.deploy(Slot.BLUE, "1", uri="models:/late/1")
    made.apply(Route("flights", 1, Slot.BLUE, "1"))
    return made


def send(endpoint: FakeEndpoint, count: int, ms: float) -> None:
    endpoint.behave("1", lambda _: Reply(200, b"", ms))
    for _ in range(count):
        endpoint.send(b"")


def test_a_champion_that_is_slower_from_the_first_replay_on_stops_them(endpoint: FakeEndpoint) -> None:
    opened = endpoint.observations(None).cursor
    send(endpoint, 300, ms=10)
    pressure = Pressure(endpoint, Slot.BLUE, since=opened)
    send(endpoint, 199, ms=40)
    pressure.look()
    assert not pressure.high, "one request is missing"
    send(endpoint, 1, ms=40)
    pressure.look()
    assert pressure.high
    send(endpoint, 200, ms=10)
    pressure.look()
    assert not pressure.high


def test_where_little_is_known_of_before_the_first_requests_are_compared_with(endpoint: FakeEndpoint) -> None:
    opened = endpoint.observations(None).cursor
    send(endpoint, 50, ms=10)
    pressure = Pressure(endpoint, Slot.BLUE, since=opened)
    send(endpoint, 200, ms=10)
    pressure.look()
    assert not pressure.high
    send(endpoint, 200, ms=40)
    pressure.look()
    assert pressure.high
