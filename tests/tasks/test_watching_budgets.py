"""Budgets that burn: people are told, and nothing goes back for it."""

from __future__ import annotations

from pathlib import Path

from serving.endpoint import Reply
from tasks.previous import WATCH
from tests.tasks.test_watching import World, failing, policy


def test_a_burning_budget_is_told_and_rolls_nothing_back(tmp_path: Path) -> None:
    world = World(tmp_path, error_rate=0.2)
    world.look()
    world.endpoint.behave("2", failing(0.03))
    for _ in range(10):
        world.seconds(5)
        assert world.look().step == "GO_ON"
    (alert,) = world.alerts()
    assert "the error budget burns" in alert
    assert world.serving() == ("2", 0)


BURN = {"long_s": 600, "short_s": 60, "rate": 0.8, "severity": "critical"}


def slow_at_times(body: bytes) -> Reply:
    """45% beyond 50 ms: no harm to a median of 50 ms, and nine tenths of its budget."""
    return Reply(200, b"1", 90.0 if int(body) % 20 < 9 else 2.0)


def test_a_burning_latency_budget_is_told_and_rolls_nothing_back(tmp_path: Path) -> None:
    world = World(tmp_path, latency_ms={"p50": 50}, burn=[BURN])
    world.look()
    world.endpoint.behave("2", slow_at_times)
    for _ in range(10):
        world.seconds(5)
        assert world.look().step == "GO_ON"
    (alert,) = world.alerts()
    assert "the budget of latency/p50 burns 0.9 times too fast" in alert
    assert "requests waited over 50 ms, the objective is 50.000%" in alert
    assert world.serving() == ("2", 0)


def test_of_failures_only_the_error_budget_is_told_although_no_failure_is_quick(tmp_path: Path) -> None:
    world = World(tmp_path, latency_ms={"p50": 50}, burn=[BURN], error_rate=0.9)
    world.look()
    world.endpoint.behave("2", lambda body: Reply(500 if int(body) % 20 < 9 else 200, b"1", 2.0))
    world.seconds(5)
    assert world.look().step == "GO_ON"
    (alert,) = world.alerts()
    assert "the error budget burns" in alert


def test_what_was_spent_of_another_latency_budget_is_forgotten(tmp_path: Path) -> None:
    world = World(tmp_path, latency_ms={"p50": 50})
    world.look()
    world.endpoint.behave("2", slow_at_times)
    for budget in (50, 60):
        world.policy = policy(latency_ms={"p50": budget})
        world.seconds(10)
        world.look()
        kept = world.journal.state("flights", WATCH)
        assert kept is not None
        ((name, buckets),) = kept.value["slow"].items()
        assert name == f"latency/p50 {budget}"
        assert (sum(one[2] for one in buckets), sum(one[3] for one in buckets)) == (500, 225)
