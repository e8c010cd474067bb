"""Units of evidence: windows, shares, fresh randomisation, and a slow reference beside it."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.policy import Canary, Latency, LatencyBudget, Window
from evals.badness import families
from evals.canary import CanaryJudge
from evals.looks import LatencyThresholds, LookStatistics, StoredLook, budget_limits
from evals.units import UnitTracker
from evals.verdict import Outcome

from .streams import requests

NO_LATENCY = LatencyThresholds({})
POLICY = Canary(settle_s=2, window=Window(requests=3, seconds=10))


def tracker(
    by: Literal["user", "request"] = "user",
    policy: Canary = POLICY,
    thresholds: LatencyThresholds = NO_LATENCY,
) -> UnitTracker:
    return UnitTracker(policy, by, thresholds)


def levels(statistics: LookStatistics, metric: str = "errors") -> dict[tuple[float, str], dict[int, int]]:
    """Non-zero counts by (pi, arm)."""
    found = {}
    for group in statistics.groups:
        for arm in ("candidate", "champion"):
            counts = getattr(group, arm).get(metric, ())
            if any(counts):
                found[group.pi, arm] = {level: n for level, n in enumerate(counts) if n}
    return found


def test_requests_are_units_where_requests_are_assigned() -> None:
    frame = requests(
        [
            {"user": "a", "candidate": True, "failed": True},
            {"user": "a"},
            {"user": "a", "time": 1.0, "share": 0.25},
        ]
    )
    look = tracker("request").observe(frame, now=10)
    assert levels(look) == {
        (0.05, "candidate"): {20: 1},
        (0.05, "champion"): {0: 1},
        (0.25, "champion"): {0: 1},
    }
    assert (look.requests_candidate, look.requests_champion) == (1, 2)
    assert [(g.pi, g.entered_candidate, g.entered_champion) for g in look.groups] == [
        (0.05, 1, 1),
        (0.25, 0, 1),
    ]


def test_a_user_gives_one_value_however_many_requests() -> None:
    frame = requests([{"time": t, "failed": t == 1} for t in range(8)])
    look = tracker(policy=Canary(window=Window(requests=4, seconds=100))).observe(frame, now=100)
    assert levels(look) == {(0.05, "champion"): {5: 1}}


def test_requests_without_a_user_are_units_of_their_own() -> None:
    look = tracker().observe(requests([{"user": ""}, {"user": None}, {"user": "a"}]), now=3)
    assert levels(look) == {(0.05, "champion"): {0: 2}}
    assert look.groups[0].entered_champion == 3


def test_young_requests_wait_and_windows_close_in_time() -> None:
    watching = tracker()
    assert watching.observe(requests([{"time": 9.0}]), now=10) == LookStatistics()
    entered = watching.observe(requests(), now=11)
    assert entered.groups[0].entered_champion == 1
    assert levels(entered) == {}
    assert levels(watching.observe(requests(), now=20.9)) == {}
    assert levels(watching.observe(requests(), now=21)) == {(0.05, "champion"): {0: 1}}
    assert watching.users == 1


def test_a_full_window_closes_at_once() -> None:
    frame = requests([{"time": t} for t in (0.0, 0.1, 0.2)])
    assert levels(tracker().observe(frame, now=3)) == {(0.05, "champion"): {0: 1}}


def test_a_late_request_of_an_open_window_counts_and_one_of_a_closed_window_is_told() -> None:
    watching = tracker()
    watching.observe(requests([{"time": 0.0}]), now=8)
    watching.observe(requests([{"time": 3.0, "failed": True}]), now=9)
    assert levels(watching.observe(requests(), now=12)) == {(0.05, "champion"): {10: 1}}
    look = watching.observe(requests([{"time": 5.0, "failed": True}, {"time": 11.0}]), now=20)
    assert (levels(look), look.late_candidate, look.late_champion) == ({}, 0, 1)


def test_a_slow_first_request_enters_when_it_appears() -> None:
    watching = tracker()
    watching.observe(requests([{"user": "other", "time": 50.0, "share": 0.25}]), now=60)
    look = watching.observe(requests([{"time": 1.0, "candidate": True, "failed": True}]), now=60)
    assert levels(look)[0.05, "candidate"] == {20: 1}


def test_champion_users_are_drawn_again_when_the_share_rises() -> None:
    frame = requests(
        [
            {"user": "stays", "time": 0.0},
            {"user": "moves", "time": 0.0},
            {"user": "ours", "time": 0.0, "candidate": True},
            {"user": "stays", "time": 1.0, "share": 0.25},
            {"user": "moves", "time": 1.0, "share": 0.25, "candidate": True, "failed": True},
            {"user": "ours", "time": 1.0, "share": 0.25, "candidate": True, "failed": True},
            {"user": "new", "time": 1.0, "share": 0.25},
            {"user": "stays", "time": 2.0, "share": 0.5},
            {"user": "moves", "time": 2.0, "share": 0.5, "candidate": True},
        ]
    )
    look = tracker().observe(frame, now=100)
    again, further = round(0.2 / 0.95, 12), round(0.25 / 0.75, 12)
    assert levels(look) == {
        (0.05, "candidate"): {0: 1},
        (0.05, "champion"): {0: 2},
        (again, "candidate"): {20: 1},
        (again, "champion"): {0: 1},
        (0.25, "champion"): {0: 1},
        (further, "champion"): {0: 1},
    }


def test_a_share_that_falls_back_draws_nobody_again() -> None:
    rows = [{"time": t, "share": share} for t, share in enumerate((0.25, 0.05, 0.0, 0.25, 1.0))]
    look = tracker().observe(requests(rows), now=100)
    assert levels(look) == {(0.25, "champion"): {0: 1}}
    assert look.requests_champion == 3


def test_shares_of_zero_and_one_are_no_evidence() -> None:
    frame = requests([{"share": 0.0}, {"share": 1.0, "candidate": True}])
    for by in ("user", "request"):
        assert tracker(by).observe(frame, now=100) == LookStatistics()


def test_latency_counts_with_slack_for_the_candidate_only() -> None:
    policy = Canary(latency=Latency(tolerance=0.1, margin=0.5, budget_ms=LatencyBudget(p95=100)))
    thresholds = LatencyThresholds({"p50": 10.0})
    (family,) = families(policy, thresholds)
    assert family.metrics == ("errors", "tolerance/p50", "margin/p50", "budget/p95")
    assert budget_limits(policy) == {"p95": 100.0}
    rows = [
        {"candidate": True, "service_ms": 12.0, "total_ms": 101.0},
        {"service_ms": 12.0},
        {"candidate": True, "service_ms": math.nan, "total_ms": 10.5},
        {"candidate": True, "service_ms": -1.0, "total_ms": math.nan, "failed": True},
    ]
    look = tracker("request", policy, thresholds).observe(requests(rows), now=10)
    assert levels(look, "tolerance/p50") == {(0.05, "candidate"): {0: 1, 20: 2}, (0.05, "champion"): {20: 1}}
    assert levels(look, "margin/p50") == {(0.05, "candidate"): {0: 2, 20: 1}, (0.05, "champion"): {20: 1}}
    assert levels(look, "budget/p95") == {(0.05, "candidate"): {0: 1, 20: 2}, (0.05, "champion"): {0: 1}}


def test_quantising_keeps_the_expectation() -> None:
    """A third is not a twentieth: users are rounded up or down, on average rightly."""
    rows = [{"user": f"u{i}", "time": t, "failed": t == 0} for i in range(6000) for t in (0, 1, 2)]
    counts = levels(tracker().observe(requests(rows), now=100))[0.05, "champion"]
    assert set(counts) == {6, 7}
    mean = sum(level * n for level, n in counts.items()) / 6000 / 20
    assert mean == pytest.approx(1 / 3, abs=4 * 0.05 * 0.5 / math.sqrt(6000))


def test_only_requests_without_a_user_are_anonymous() -> None:
    """Nobody is anonymous for a name that looks like nothing."""
    rows = [{"user": user} for user in ("None", "nan", "None", "nan", None, math.nan, "")]
    look = tracker().observe(requests(rows), now=100)
    assert sum(group.entered_champion for group in look.groups) == 2 + 3


def test_labels_change_nothing_where_the_policy_asks_for_none() -> None:
    rows = requests([{"user": "a", "failed": True}, {"user": "b"}])
    assert tracker().observe(rows, now=100, labels={"1": 0.0}) == tracker().observe(rows, now=100)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="lack share"):
        tracker().observe(requests().drop(columns="share"), now=0)


def test_thresholds_need_enough_past() -> None:
    few = LatencyThresholds.from_past([1.0, 2.0, math.nan, -1.0] * 6)
    assert set(few.ms) == {"p50", "p90"}
    assert few.missing(("p50", "p99")) == ("p99",)
    assert set(LatencyThresholds.from_past(np.arange(1000)).ms) == {"p50", "p90", "p95", "p99", "p99.9"}
    assert LatencyThresholds.from_past([]).as_dict() == {}


# A reference that goes request by request -----------------------------------------------------


def slow_reference(
    rows: list[dict[str, Any]], policy: Canary, end: float
) -> dict[tuple[float, bool, float], int]:
    """All closed units of requests that are complete and in order: (pi, candidate, mean) -> number."""
    held: dict[str, float] = {}
    windows: dict[str, dict[str, Any]] = {}
    units: dict[tuple[float, bool, float], int] = {}

    def close(user: str) -> None:
        window = windows.pop(user)
        unit = window["pi"], window["candidate"], round(window["bad"] / window["count"], 6)
        units[unit] = units.get(unit, 0) + 1

    for row in sorted(rows, key=lambda row: row["time"]):
        for user in list(windows):
            if windows[user]["share"] != row["share"]:
                close(user)
        user, share = row["user"], row["share"]
        window = windows.get(user)
        if window and row["time"] > window["start"] + policy.window.seconds:
            close(user)
            window = None
        if window is None:
            known = held.get(user, 0.0)
            if share <= known:
                continue
            pi = round((share - known) / (1 - known), 12)
            held[user] = 1.0 if row["candidate"] else share
            window = {"pi": pi, "candidate": row["candidate"], "share": share, "start": row["time"]}
            window |= {"count": 0, "bad": 0}
            windows[user] = window
        if row["candidate"] == window["candidate"]:
            window["count"] += 1
            window["bad"] += row["failed"]
            if window["count"] == policy.window.requests:
                close(user)
    for user in list(windows):
        if windows[user]["start"] + policy.window.seconds <= end:
            close(user)
    return units


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.integers(1, 6), size=st.integers(1, 120))
def test_agrees_with_the_slow_reference_however_the_looks_fall(seed: int, cuts: int, size: int) -> None:
    """Means of up to 2 requests are exact twentieths, so both count the same units."""
    rng = np.random.default_rng(seed)
    policy = Canary(settle_s=1, window=Window(requests=2, seconds=5))
    times = np.sort(rng.uniform(0, 40, size))
    steps = np.sort(rng.choice([0.05, 0.25, 0.5, 0.95], 4))
    share = steps[np.minimum((times / 10).astype(int), 3)]
    bucket = rng.random(12)
    user = rng.integers(0, 12, size)
    rows: list[dict[str, Any]] = [
        {
            "time": float(times[i]),
            "user": f"user-{user[i]}",
            "share": float(share[i]),
            "candidate": bool(bucket[user[i]] < share[i]),
            "failed": bool(rng.random() < 0.3),
        }
        for i in range(size)
    ]
    expected = slow_reference(rows, policy, end=100)
    watching = tracker(policy=policy)
    found: dict[tuple[float, bool, float], int] = {}
    bounds = [0, *sorted(rng.integers(0, size + 1, cuts - 1).tolist()), size]
    for index in range(cuts):
        part = rows[bounds[index] : bounds[index + 1]]
        now = 102.0 if index == cuts - 1 else (part[-1]["time"] if part else 0.0) + rng.uniform(0, 1)
        look = watching.observe(requests(part), now=now)
        assert LookStatistics.from_dict(json.loads(json.dumps(look.as_dict()))) == look
        for (pi, arm), counts in levels(look).items():
            for level, number in counts.items():
                key = pi, arm == "candidate", round(level / 20, 6)
                found[key] = found.get(key, 0) + number
    assert found == expected


def test_stored_looks_survive_json() -> None:
    look = tracker("request").observe(requests([{"candidate": True}, {}]), now=10)
    stored = StoredLook(look, step=1, seconds_at_step=2.5, stuck_candidate=1, stuck_champion=3)
    assert StoredLook.from_dict(json.loads(json.dumps(stored.as_dict()))) == stored


# Validity and speed -----------------------------------------------------------------------------


def sticky_release(rng: np.random.Generator, *, harm: float, policy: Canary) -> Outcome:
    """Users with error rates of their own and Zipf traffic through a ramp; harm multiplies the rates."""
    users, total, looks = 1500, 12_000, 16
    rate = rng.beta(0.2, 6, users)
    bucket = rng.random(users)
    weight = 1 / np.arange(1, users + 1) ** 1.1
    user = rng.choice(users, total, p=weight / weight.sum())
    when = np.sort(rng.uniform(0, 1600, total))
    share = np.array(policy.steps)[np.minimum((when / 400).astype(int), 3)] / 100
    candidate = bucket[user] < share
    failed = rng.random(total) < np.minimum(rate[user] * np.where(candidate, harm, 1.0), 1)
    names = np.array([f"{i:08x}" for i in range(users)], dtype=object)
    frame = pd.DataFrame(
        {"time": when, "user": names[user], "share": share, "candidate": candidate, "failed": failed}
    ).assign(service_ms=1.0, total_ms=1.0)
    watching, judge = UnitTracker(policy, "user", NO_LATENCY), CanaryJudge(policy, NO_LATENCY)
    edges = np.searchsorted(when, np.linspace(0, 1600, looks + 1))
    for look in range(looks):
        part = frame.iloc[edges[look] : edges[look + 1]]
        now = (look + 1) * 1600 / looks
        step = min(look * 4 // looks, 3)
        found = judge.look(watching.observe(part, now), step=step, seconds_at_step=now - 400 * step)
        if found.numbers["evidence_log10/rollback"] >= 2:
            return Outcome.FAIL
    return Outcome.INCONCLUSIVE


@pytest.mark.slow
def test_sticky_users_with_their_own_rates_are_rarely_rolled_back() -> None:
    rng = np.random.default_rng(11)
    policy = Canary(window=Window(requests=10, seconds=30))
    failed = sum(sticky_release(rng, harm=1.0, policy=policy) is Outcome.FAIL for _ in range(100))
    assert failed <= 3  # at a true rate of 1%, 4 or more would come up once in 50 runs of another seed
    caught = sum(sticky_release(rng, harm=6.0, policy=policy) is Outcome.FAIL for _ in range(20))
    assert caught >= 18


def test_times_of_the_warm_up_are_no_evidence_and_its_errors_are() -> None:
    thresholds = LatencyThresholds({"p50": 10.0})
    slow = {"service_ms": 1000.0, "total_ms": 1000.0}
    frame = requests(
        [
            {"user": "a", "candidate": True, "failed": True, **slow},
            {"user": "b", "time": 1.0, **slow},
            {"user": "c", "time": 9.0, "candidate": True, **slow},
            {"user": "d", "time": 9.0, **slow},
        ]
    )
    policy = Canary(latency=Latency(quantiles=("p50",), budget_ms=LatencyBudget(p95=500)))
    looked = tracker("request", policy, thresholds).observe(frame.assign(is_warm=frame["time"] > 5), now=60)
    for metric in ("tolerance/p50", "margin/p50"):
        counts = levels(looked, metric)
        assert counts == {(0.05, arm): {0: 1, 20: 1} for arm in ("candidate", "champion")}
    assert levels(looked)[0.05, "candidate"] == {0: 1, 20: 1}
    assert levels(looked, "budget/p95")[0.05, "candidate"] == {20: 2}, "clients did wait"
