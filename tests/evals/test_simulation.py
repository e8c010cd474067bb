"""Releases on simulated traffic: the same seed is the same release, and harm ends as it must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from configs.policy import Canary, Errors, Latency, Window
from evals.simulation import Change, Played, Traffic, horizon_s, play
from evals.verdict import Outcome

POLICY = Canary(
    steps=(5, 50, 95),
    bake_s=30,
    soak_s=60,
    min_units=20,
    errors=Errors(margin=0.05),
    latency=Latency(tolerance=0.5, margin=0.5, quantiles=("p50",)),
    window=Window(requests=3, seconds=5),
)
GOOD = Change("good")


def traffic(*, users: float = 0, rate: float = 60, error_rate: float = 0.01) -> Traffic:
    rng = np.random.default_rng(3)
    return Traffic.made_up(
        rng, requests_per_s=rate, error_rate=error_rate, p50_ms=20, p99_ms=80, users_per_h=users
    )


def run(change: Change, *, users: float = 0, number: int = 0) -> Played:
    by_user = users > 0
    return play(POLICY, traffic(users=users), change, by_user=by_user, seed=(1, number), until_s=1800)


@pytest.mark.parametrize("users", [0, 30_000])
def test_a_good_version_is_promoted_not_before_its_time_and_bad_ones_go_early(users: float) -> None:
    good = run(GOOD, users=users)
    assert good.outcome is Outcome.PASS
    assert good.seconds >= POLICY.bake_s * 2 + POLICY.soak_s
    failing = run(Change("errors", more_errors=0.3), users=users)
    assert (failing.outcome, failing.step) == (Outcome.FAIL, 0)
    assert 0 < failing.exposed < 300
    slow = run(Change("slow", slower=3.0), users=users)
    assert slow.outcome is Outcome.FAIL
    assert slow.seconds < good.seconds


def test_the_same_seed_is_the_same_release_and_another_is_another() -> None:
    change = Change("errors", more_errors=0.1)
    assert run(change, number=4) == run(change, number=4)
    assert len({run(change, number=number).exposed for number in range(4)}) > 1


def test_what_is_worse_is_stopped_after_fewer_requests() -> None:
    means = [
        np.mean([run(Change("errors", more_errors=share), number=number).exposed for number in range(4)])
        for share in (0.06, 0.2, 0.6)
    ]
    assert means[0] > means[1] > means[2]


def test_without_enough_traffic_nothing_is_decided() -> None:
    played = play(POLICY, traffic(rate=0.05), GOOD, by_user=False, seed=(1,), until_s=300)
    assert (played.outcome, played.step) == (Outcome.INCONCLUSIVE, 0)
    assert played.seconds >= 300


def test_a_tail_is_slower_above_the_p95_only() -> None:
    drawn = traffic()
    frame = Change("tail", tail=2.0).frame(drawn, candidate=True)
    slower = frame["service_ms"].to_numpy() > drawn.service_ms
    assert 0.045 < slower.mean() < 0.055
    assert drawn.service_ms[slower].min() > drawn.quantile_ms(0.94)
    assert (
        Change("tail", tail=2.0)
        .frame(drawn, candidate=False)["service_ms"]
        .equals(pd.Series(drawn.service_ms))
    )


@pytest.mark.parametrize("size", [3_000, 60_000])
def test_traffic_from_requests_keeps_rates_users_and_their_own_requests(size: int) -> None:
    rng = np.random.default_rng(5)
    user = rng.integers(0, size // 10, size)
    frame = pd.DataFrame(
        {
            "user": np.where(user == 0, "", [f"u{number}" for number in user]),
            "failed": user % 50 == 1,  # some users always fail
            "service_ms": rng.lognormal(3, 0.5, size),
            "total_ms": 100.0,
        }
    )
    made = Traffic.from_requests(frame, requests_per_s=10, span_s=3600)
    assert made.error_rate == pytest.approx(0.02, abs=0.008)
    assert made.user_rate.size == pytest.approx(size // 10, rel=0.05)
    assert made.user_rate.sum() == pytest.approx(size / 3600, rel=0.1)
    assert made.failed.size <= 20_000 * 1.1
    assert np.all(np.diff(made.user) >= 0)
    of_user = [made.failed[made.user == number] for number in range(40)]
    assert all(one.all() or not one.any() for one in of_user)


def test_requests_that_name_no_user_are_units_and_where_no_unit_comes_nothing_is_decided() -> None:
    away = replace(traffic(users=100), user_rate=np.full(100, 1e-9))
    half = np.where(np.arange(away.user.size) % 2 == 0, -1, away.user)
    order = np.argsort(half, kind="stable")
    mixed = replace(away, user=half[order], failed=away.failed[order])
    undecided, promoted = (
        play(POLICY, drawn, GOOD, by_user=True, seed=(2,), until_s=600) for drawn in (away, mixed)
    )
    assert (undecided.outcome, undecided.step) == (Outcome.INCONCLUSIVE, 0)
    assert promoted.outcome is Outcome.PASS


def test_the_horizon_is_some_ramps_and_never_short() -> None:
    assert horizon_s(POLICY) == 3600
    assert horizon_s(Canary()) == 4 * (3 * 300 + 1800)
