"""Moving traffic under load: nobody notices, and after the answer nothing new goes the old way."""

from __future__ import annotations

import dataclasses
import time

import pytest

from serving.endpoint import Slot
from serving.gateway.render import refresh_gateway
from tests.serving.gateway.lab import Lab
from tests.serving.gateway.load import Load

pytestmark = pytest.mark.slow


def test_two_hundred_changes_and_fifty_rollbacks_hurt_nobody(lab: Lab) -> None:
    """Every rollback: requests sent after `apply` returned are answered by the default, all of them."""
    flights = lab.serve("flights", candidate="2")
    rolled_back: list[tuple[float, float]] = []
    with Load(lab, clients=8).running() as load:
        for _ in range(50):
            route = lab.route(candidate="2")
            flights.apply(route)
            for share_bp in (500, 2500, 5000, 9500):
                flights.apply(dataclasses.replace(route, share_bp=share_bp, until=time.time() + 30))
                time.sleep(0.02)
            following = lab.route(candidate="2")
            flights.apply(following)
            ended = time.monotonic()
            load.until_asked_since(ended)
            rolled_back.append((ended, time.monotonic()))
    assert load.failed() == []
    assert {sample.version for sample in load.samples} == {"1", "2"}
    for begun, ended in rolled_back:
        new = [sample for sample in load.samples if begun < sample.sent and sample.done < ended]
        assert len(new) >= 8
        assert all(sample.version == "1" for sample in new)


def test_promotion_and_back_under_load(lab: Lab) -> None:
    flights = lab.serve("flights", candidate="2")
    moved: list[tuple[float, float, str]] = []
    with Load(lab, clients=8).running() as load:
        for number in range(20):
            route = lab.route(candidate="2")
            if number % 2:
                flights.apply(route)
            else:
                flights.apply(
                    dataclasses.replace(route, default=Slot.GREEN, default_version="2", other_version="1")
                )
            begun = time.monotonic()
            load.until_asked_since(begun)
            moved.append((begun, time.monotonic(), "1" if number % 2 else "2"))
    assert load.failed() == []
    for begun, ended, version in moved:
        new = [sample for sample in load.samples if begun < sample.sent and sample.done < ended]
        assert all(sample.version == version for sample in new)


def test_reloads_and_deployments_under_load_drop_no_request(lab: Lab) -> None:
    """And a rollback during reloads reaches the old workers too."""
    flights = lab.serve("flights", candidate="2")
    with Load(lab, clients=8, command={"sleep_s": 0.02}).running() as load:
        windows = []
        for number in range(3):
            route = lab.route(candidate="2", share_bp=10_000)
            flights.apply(route)
            lab.runtime.reload()
            time.sleep(0.05)
            flights.apply(lab.route(candidate="2"))
            begun = time.monotonic()
            load.until_asked_since(begun)
            windows.append((begun, time.monotonic()))
            flights.retire(Slot.GREEN)
            flights.deploy(Slot.GREEN, "2", uri=f"models:/m/{number}")
            refresh_gateway(lab.settings)
    assert load.failed() == []
    for begun, ended in windows:
        new = [sample for sample in load.samples if begun < sample.sent and sample.done < ended]
        assert new
        assert all(sample.version == "1" for sample in new)
