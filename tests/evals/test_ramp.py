"""The ramp: only the policy's shares, never more harm than the budget, and honest plans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.policy import Canary
from evals.ramp import StepPlan, expected_harm, next_step, plan, plan_words

PLAIN = Canary(bake_s=100, soak_s=200)
BUDGET = PLAIN.model_copy(update={"error_budget": 20.0})


def test_without_a_budget_the_ramp_goes_step_by_step() -> None:
    steps = [next_step(PLAIN, step, excess_high=1.0, requests_per_s=1e6).step for step in (-1, 0, 1, 2, 3)]
    assert steps == [0, 1, 2, 3, None]


@pytest.mark.parametrize(("high", "step"), [(0.01, None), (0.002, 1), (0.001, 2), (0.0001, 3), (-0.01, 3)])
def test_the_largest_step_that_fits(high: float, step: int | None) -> None:
    found = next_step(BUDGET, 0, excess_high=high, requests_per_s=300)
    assert found.step == step
    assert "budget is 20" in found.reason


def test_the_first_step_needs_no_evidence_and_every_other_does() -> None:
    assert next_step(BUDGET, -1, excess_high=None, requests_per_s=300).step == 0
    assert next_step(BUDGET, 0, excess_high=None, requests_per_s=300).step is None
    assert next_step(BUDGET, 3, excess_high=0.0, requests_per_s=300).step is None


@given(
    step=st.integers(0, 3),
    high=st.floats(-1, 1),
    rate=st.floats(0, 1e6),
    budget=st.floats(0.1, 1e6),
)
def test_no_granted_step_can_cost_more_than_the_budget(
    step: int, high: float, rate: float, budget: float
) -> None:
    policy = PLAIN.model_copy(update={"error_budget": budget})
    found = next_step(policy, step, excess_high=high, requests_per_s=rate)
    if found.step is not None:
        assert found.step > step
        assert expected_harm(policy, found.step, excess_high=high, requests_per_s=rate) <= budget


def test_plans_take_longer_for_subtler_harm_and_for_balanced_arms() -> None:
    double, fivefold = (
        plan(PLAIN, error_rate=0.01, units_per_s=150),
        plan(PLAIN, error_rate=0.01, units_per_s=150, times=5),
    )
    for subtle, plain in zip(double, fivefold, strict=True):
        assert plain.units_to_catch < subtle.units_to_catch
        assert subtle.seconds_to_clear >= PLAIN.bake_s
        assert subtle.seconds_to_catch == pytest.approx(subtle.units_to_catch / (subtle.share / 100 * 150))
    assert 1000 < double[0].units_to_catch < 2500
    never = plan(PLAIN, error_rate=0.01, units_per_s=150, times=1.0)
    assert never[0].units_to_catch is None
    assert never[0].seconds_to_catch is None


def test_a_plan_in_words() -> None:
    assert plan_words(StepPlan(5, 2.0, 900.0, None, 90.0, None)) == (
        "5%: 2 times the errors caught in about 90 s, no more errors shown never"
    )
    spoken = [plan_words(StepPlan(5, 2.0, 1, 1, seconds, 1.0)) for seconds in (600.0, 9_000.0, 400_000.0)]
    assert ["about 10 min" in spoken[0], "about 2 h" in spoken[1], "about 5 days" in spoken[2]] == [True] * 3
