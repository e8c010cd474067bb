"""Machine-hours, dollars, and dollars a request, worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.cost import Sighting, cost_an_hour, fleet_cost

HOUR = 3600.0
PRICES = {"small": 0.2, "gpu": 3.0}


def seen(hours: float, machines: dict, **answered: int) -> Sighting:
    return Sighting(hours * HOUR, machines, {name[1:]: count for name, count in answered.items()})


def test_each_stretch_counts_the_machines_that_were_there_when_it_began() -> None:
    one, two = fleet_cost(
        [
            seen(0, {"1": {"small": 2}, "2": {"gpu": 1}}),
            seen(1, {"1": {"small": 2}, "2": {"gpu": 1, "small": 1}}),
        ],
        PRICES,
        until=3 * HOUR,
    )
    assert (one.version, one.hours, one.dollars) == ("1", 6.0, pytest.approx(6 * 0.2))
    assert (two.version, two.hours, two.dollars) == ("2", 5.0, pytest.approx(3.0 + 2 * 3.2))


def test_a_request_costs_what_the_machines_cost_while_it_was_answered() -> None:
    """The first hour is the shadow's: nobody's live request pays for it."""
    both = {"1": {"small": 1}, "2": {"small": 1}}
    one, two = fleet_cost(
        [seen(0, both), seen(1, both), seen(2, both, v1=900_000, v2=100_000)], PRICES, until=2 * HOUR
    )
    assert (one.requests, one.dollars_per_million) == (900_000, pytest.approx(0.2 / 0.9))
    assert (two.requests, two.dollars_per_million) == (100_000, pytest.approx(0.2 / 0.1))
    assert two.dollars == pytest.approx(0.4)


def test_what_is_not_known_is_not_made_up() -> None:
    assert fleet_cost([], PRICES, until=0) == ()
    (only,) = fleet_cost([seen(0, {"1": {"unpriced": 1}})], PRICES, until=HOUR)
    assert (only.hours, only.dollars, only.requests, only.dollars_per_million) == (1.0, 0.0, 0, None)
    assert cost_an_hour({"small": 3, "gpu": 1, "unpriced": 9}, PRICES) == pytest.approx(3.6)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 5)), min_size=1, max_size=6), st.floats(0, 200))
def test_looking_more_often_changes_nothing(sightings: list[tuple[float, int]], until: float) -> None:
    ordered = [seen(at, {"1": {"small": count}}) for at, count in sorted(sightings)]
    twice = [
        copy
        for one, after in zip(ordered, [*ordered[1:], ordered[-1]], strict=True)
        for copy in (one, Sighting((one.time + after.time) / 2, one.machines, {}))
    ]
    (once,) = fleet_cost(ordered, PRICES, until=max(until * HOUR, ordered[-1].time))
    (again,) = fleet_cost(twice, PRICES, until=max(until * HOUR, ordered[-1].time))
    assert again.dollars == pytest.approx(once.dollars)
    assert again.hours == pytest.approx(once.hours)
