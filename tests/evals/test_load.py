"""Load tests decided on simulated queues: known service times and servers, known highest rate."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from configs.load_test import LoadTest
from configs.section import LatencyBudget
from evals.load import Arrivals, LoadStep, judge_load, judge_step, measure, next_rate
from evals.verdict import Outcome

BUDGET = LatencyBudget(p95=50)
POLICY = LoadTest(rate_per_s=100, duration_s=20, warm_up_s=2)


def queue(rate: float, *, servers: int = 2, service_s: float = 0.01, late_s: float = 0.0) -> Arrivals:
    """A queue with so many servers, each request taking as long; the generator this late."""
    due = np.arange(int(rate * POLICY.duration_s)) / rate
    sent = due + late_s
    free = [0.0] * servers
    done: list[float] = []
    for at in sent:
        start = max(at, heapq.heappop(free))
        heapq.heappush(free, start + service_s)
        done.append(start + service_s)
    return Arrivals(due, sent, np.array(done), np.full(len(due), 200))


def step(rate: float, **wanted: float | int) -> LoadStep:
    return measure(queue(rate, **wanted), rate=rate, policy=POLICY, budget=BUDGET)  # pyright: ignore


def test_what_fails_without_its_late_requests_too_is_a_fail() -> None:
    slow = queue(50, servers=8, service_s=0.12)
    sent = slow.sent.copy()
    sent[::20] += 0.03  # one in twenty late, all over budget
    verdict = judge_step(
        measure(Arrivals(slow.due, sent, slow.done, slow.status), rate=50, policy=POLICY, budget=BUDGET),
        POLICY,
        BUDGET,
    )
    assert verdict.outcome is Outcome.FAIL
    assert "it fails without them too" in verdict.reason


def test_latency_counts_from_the_moment_a_request_is_due() -> None:
    slow = step(100, servers=1, service_s=0.02)  # twice what it can do: the queue grows without end
    assert slow.p50 > 4_000
    assert judge_step(slow, POLICY, BUDGET).outcome is Outcome.FAIL
    assert step(100).p99 == pytest.approx(10)


def test_a_late_generator_makes_nothing_better_and_its_failures_are_no_verdict() -> None:
    harmless = step(100, late_s=0.03)
    assert harmless.p95 == pytest.approx(40)
    assert judge_step(harmless, POLICY, BUDGET).outcome is Outcome.PASS
    harmful = step(100, late_s=0.06)
    verdict = judge_step(harmful, POLICY, BUDGET)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "late by the generator" in verdict.reason


def test_a_generator_that_did_not_send_tests_nothing() -> None:
    arrivals = queue(100)
    sent = np.where(arrivals.due > 8, np.nan, arrivals.sent)
    measured = measure(
        Arrivals(arrivals.due, sent, np.where(np.isnan(sent), np.nan, arrivals.done), arrivals.status),
        rate=100,
        policy=POLICY,
        budget=BUDGET,
    )
    verdict = judge_step(measured, POLICY, BUDGET)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "was not tested" in verdict.reason


def test_errors_fail_and_count_as_waiting_for_ever() -> None:
    arrivals = queue(100)
    status = np.where(np.arange(len(arrivals.due)) % 10 == 0, 503, 200)
    measured = measure(
        Arrivals(arrivals.due, arrivals.sent, arrivals.done, status), rate=100, policy=POLICY, budget=BUDGET
    )
    assert measured.p95 == np.inf
    verdict = judge_step(measured, POLICY, BUDGET)
    assert verdict.outcome is Outcome.FAIL
    assert "failed" in verdict.reason


@pytest.mark.parametrize(("servers", "service_s"), [(1, 0.004), (2, 0.01), (4, 0.012)])
def test_the_search_finds_what_the_queue_can_do(servers: int, service_s: float) -> None:
    can = servers / service_s
    steps: list[LoadStep] = []
    while True:
        passed = [judge_step(one, POLICY, BUDGET).passed for one in steps]
        rate = next_rate(steps, passed, POLICY)
        if rate is None:
            break
        steps.append(step(rate, servers=servers, service_s=service_s))
    verdict = judge_load(steps, POLICY, BUDGET, replicas=1)
    found = {one.metric: one.candidate for one in verdict.findings}
    assert verdict.passed
    assert can / 1.2 <= found["highest_rate_per_s"] <= can * 1.01
    assert 1 <= found["concurrency_per_replica"] <= servers + 1
    assert len(steps) <= POLICY.steps_max


def test_the_search_stops_at_its_ceiling_and_at_once_where_the_expected_rate_is_too_much() -> None:
    fast = [step(rate, service_s=0.001) for rate in (100, 150, 225, 337.5, 400)]
    assert next_rate(fast, [True] * 5, POLICY) is None
    slow = [step(100, servers=1, service_s=0.02)]
    assert next_rate(slow, [False], POLICY) is None
    assert judge_load(slow, POLICY, BUDGET, replicas=1).outcome is Outcome.FAIL


def test_where_every_rate_was_borne_no_limit_was_found() -> None:
    fast = [step(rate, service_s=0.001) for rate in (100, 150, 225, 337.5, 400)]
    verdict = judge_load(fast, POLICY, BUDGET, replicas=1)
    assert {one.metric: one.candidate for one in verdict.findings if one.metric != "p95"} == {
        "errors": None,
        "highest_rate_per_s": 400,
    }
    assert "no limit found: 400/s is borne" in verdict.reason


def test_a_rate_that_the_generator_could_not_send_shows_no_limit_either() -> None:
    arrivals = queue(150)
    sent = np.where(arrivals.due > 8, np.nan, arrivals.sent)
    done = np.where(np.isnan(sent), np.nan, arrivals.done)
    untested = measure(
        Arrivals(arrivals.due, sent, done, arrivals.status), rate=150, policy=POLICY, budget=BUDGET
    )
    verdict = judge_load([step(100), untested], POLICY, BUDGET, replicas=1)
    assert verdict.passed
    assert "no limit found" in verdict.reason


def test_nothing_tried_never_passes() -> None:
    assert judge_load([], POLICY, BUDGET, replicas=1).outcome is Outcome.INCONCLUSIVE


def test_a_few_slow_ones_beyond_the_budget_are_chance() -> None:
    arrivals = queue(100)
    policy = POLICY.model_copy(update={"duration_s": 20, "warm_up_s": 19})
    late = arrivals.done.copy()
    late[-6:] += 1  # 6 of the last 100: a 95th percentile that is hardly over
    measured = measure(
        Arrivals(arrivals.due, arrivals.sent, late, arrivals.status), rate=100, policy=policy, budget=BUDGET
    )
    assert judge_step(measured, policy, BUDGET).outcome is Outcome.INCONCLUSIVE
