"""What a release's machines cost, from the journal: stored as it goes, told the same to everybody."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.policy import Policy
from serving.endpoint import EndpointState, Replica, Slot
from serving.errors import PlatformUnavailable
from tasks.bench import Bench
from tasks.costing import Meter, cost_numbers, cost_words, release_cost
from tests.configs.policies import sagemaker_content, valid_content
from tests.serving.contract.platforms import sagemaker_policy
from tests.tasks.doubles import HandClock

HOUR = 3600.0
PRICES = {"ml.m5.large": 0.2, "ml.g5.xlarge": 1.0}


class Machines:
    """A platform that says how many machines each slot has."""

    def __init__(self) -> None:
        self.blue = ["ml.m5.large"]
        self.green = ["ml.m5.large", "ml.g5.xlarge"]
        self.asked = 0
        self.is_away = False

    def describe(self) -> EndpointState:
        self.asked += 1
        if self.is_away:
            raise PlatformUnavailable("no answer")
        of = {Slot.BLUE: self.blue, Slot.GREEN: self.green}
        replicas = {
            slot: tuple(
                Replica(f"{slot}-{n}", "", healthy=True, machine=kind) for n, kind in enumerate(kinds)
            )
            for slot, kinds in of.items()
        }
        return EndpointState("flights", None, {Slot.BLUE: "1", Slot.GREEN: "2"}, replicas)


@pytest.fixture
def clock() -> HandClock:
    return HandClock(now=0.0)


@pytest.fixture
def machines() -> Machines:
    return Machines()


@pytest.fixture
def bench(tmp_path: Path, clock: HandClock, machines: Machines) -> Bench:
    from configs.settings import Settings

    policy = sagemaker_policy(instance_types=list(PRICES), price_per_hour=PRICES)
    endpoint: Any = machines
    return Bench(
        policy, Settings(journal_url=f"sqlite:///{tmp_path}/journal.db"), endpoint=endpoint, clock=clock
    )


@pytest.fixture
def release(bench: Bench) -> Any:
    return bench.journal.add_release(
        "flights", "2", champion="1", policy=bench.policy.model_dump(mode="json"), now=0.0
    )


def told(bench: Bench, release: Any, now: float, **changes: Any) -> dict[str, Any]:
    found = release_cost(bench.journal, dataclasses.replace(release, **changes), now=now)
    assert found is not None
    return found


def test_both_fleets_are_counted_until_the_end(bench: Bench, release: Any, clock: HandClock) -> None:
    meter = Meter(bench, release.id)
    meter.look(now=0.0, at_once=True)
    meter.answered({"1": 300, "2": 100})
    meter.end(now=2 * HOUR)
    cost = told(bench, release, now=2 * HOUR)
    assert cost["candidate_dollars"] == pytest.approx(2 * 1.2)
    assert cost["versions"]["1"]["dollars"] == pytest.approx(2 * 0.2)
    assert cost["versions"]["1"]["dollars_per_million"] == pytest.approx(0.4 / 300 * 1e6)
    assert cost["dollars_an_hour"] == pytest.approx(1.4)
    assert told(bench, release, now=5 * HOUR)["candidate_dollars"] == pytest.approx(5 * 1.2), "it goes on"
    numbers = cost_numbers(cost)
    assert numbers["cost/candidate_dollars"] == pytest.approx(2.4)
    assert numbers["cost/v1/requests"] == 300
    words = cost_words(cost, "2")
    assert "the candidate's machines cost $2.40" in words
    assert "champion v1: 2 machine-hours, $0.40, $1333.33 a million requests" in words


def test_a_promotion_says_what_keeping_the_old_champion_costs(bench: Bench, release: Any) -> None:
    from serving.records import ReleaseState

    Meter(bench, release.id).look(now=0.0, at_once=True)
    promoted = {"state": ReleaseState.PROMOTED, "ended_at": HOUR}
    cost = told(bench, release, now=9 * HOUR, **promoted)
    assert cost["candidate_dollars"] == pytest.approx(1.2), "an ended release costs no more"
    assert cost["kept_dollars"] == pytest.approx(0.2 * bench.policy.keep_previous_s / HOUR)
    assert "keeping the old champion warm costs up to $0.20 more" in cost_words(cost, "2")


def test_the_platform_is_asked_every_few_minutes_only(bench: Bench, release: Any, machines: Machines) -> None:
    meter = Meter(bench, release.id)
    for second in range(0, 601, 20):
        meter.look(now=float(second))
    assert machines.asked == 3


def test_a_run_that_goes_on_counts_on(bench: Bench, release: Any) -> None:
    first = Meter(bench, release.id)
    first.look(now=0.0, at_once=True)
    first.answered({"2": 100})
    first.look(now=HOUR, at_once=True)
    second = Meter(bench, release.id)
    second.answered({"2": 50})
    second.look(now=2 * HOUR, at_once=True)
    cost = told(bench, release, now=2 * HOUR)
    assert cost["versions"]["2"]["requests"] == 150


def test_a_platform_that_does_not_answer_stops_nothing(
    bench: Bench, release: Any, machines: Machines
) -> None:
    machines.is_away = True
    meter = Meter(bench, release.id)
    meter.look(now=0.0, at_once=True)
    meter.end(now=HOUR)
    assert release_cost(bench.journal, release, now=HOUR) is None


def _without_prices(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "sagemaker": {**content["sagemaker"], "price_per_hour": {}}}


def _of_long_ago(content: dict[str, Any]) -> dict[str, Any]:
    return {**content, "gone": 1}


@pytest.mark.parametrize("change", [_without_prices, _of_long_ago])
def test_without_prices_nothing_is_said(
    bench: Bench, release: Any, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    Meter(bench, release.id).look(now=0.0, at_once=True)
    other = dataclasses.replace(release, policy=change(dict(release.policy)))
    assert release_cost(bench.journal, other, now=HOUR) is None


def test_a_price_for_one_of_two_types_is_refused() -> None:
    content = {**valid_content(), "platform": "sagemaker", "assign_by": "request", "canary": {"lease_s": 300}}
    section = sagemaker_content(
        instance_types=list(PRICES),
        price_per_hour={"ml.m5.large": 0.2},
        capture={"uri": "s3://models/captures"},
    )
    with pytest.raises(ValueError, match=r"price_per_hour lacks ml\.g5\.xlarge"):
        Policy.model_validate({**content, "sagemaker": section})


def test_a_local_replica_costs_what_the_policy_says() -> None:
    from configs.prices import machine_prices

    price = {"replica_per_hour": 0.5, "tokens_per_s": 100}
    policy = Policy.model_validate({**valid_content(), "serving": {"price": price}})
    assert machine_prices(policy) == {Replica("a", "b", healthy=True).machine: 0.5}
