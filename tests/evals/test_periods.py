"""Counts of periods say the same as the requests that they count, or less."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from configs.policy import Canary
from evals.looks import ERRORS, LatencyThresholds, margin, tolerance
from evals.periods import GRID_MS, ArmPeriod, past_thresholds, period_statistics, wanted_edges, watch_counts
from evals.ramp import grantable_bp
from evals.units import UnitTracker
from evals.watch import Level

POLICY = Canary.model_validate({"settle_s": 0, "latency": {"budget_ms": {"p95": 12}}})
THRESHOLDS = LatencyThresholds({"p50": 3.0, "p95": 7.5})


def requests(count: int = 4000, share: float = 0.25, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    service = rng.lognormal(1.1, 0.5, count)
    return pd.DataFrame(
        {
            "time": rng.uniform(0, 60, count),
            "user": "",
            "share": share,
            "candidate": rng.random(count) < share,
            "failed": rng.random(count) < 0.03,
            "service_ms": service,
            "total_ms": service,
        }
    )


def arms(frame: pd.DataFrame, edges: tuple[float, ...]) -> list[ArmPeriod]:
    found = []
    for candidate, part in frame.groupby("candidate"):
        counts, _ = np.histogram(part["service_ms"], [-np.inf, *np.nextafter(edges, np.inf), np.inf])
        found.append(
            ArmPeriod(
                float(part["share"].iloc[0]),
                bool(candidate),
                0.0,
                len(part),
                int(part["failed"].sum()),
                edges,
                tuple(int(count) for count in counts),
            )
        )
    return found


def test_with_the_wanted_edges_periods_count_exactly_what_the_tracker_counts() -> None:
    frame = requests()
    by_request = UnitTracker(POLICY, "request", THRESHOLDS).observe(frame, now=100.0)
    by_period = period_statistics(POLICY, THRESHOLDS, arms(frame, wanted_edges(POLICY, THRESHOLDS)))
    assert by_period == by_request


def test_coarse_bins_favour_the_null_of_either_question() -> None:
    frame = requests()
    (exact,) = UnitTracker(POLICY, "request", THRESHOLDS).observe(frame, now=100.0).groups
    (coarse,) = period_statistics(POLICY, THRESHOLDS, arms(frame, (1.0, 5.0, 25.0))).groups
    for name in THRESHOLDS.ms:
        harm, proof = tolerance(name), margin(name)
        assert coarse.candidate[harm][-1] <= exact.candidate[harm][-1]
        assert coarse.champion[harm][-1] >= exact.champion[harm][-1]
        assert coarse.candidate[proof][-1] >= exact.candidate[proof][-1]
        assert coarse.champion[proof][-1] <= exact.champion[proof][-1]
    assert coarse.candidate[ERRORS] == exact.candidate[ERRORS]


def test_shares_are_never_added_together_and_those_without_a_choice_are_left_out() -> None:
    one, two = arms(requests(share=0.25), (5.0,)), arms(requests(share=0.5, seed=2), (5.0,))
    whole = arms(requests(share=1.0, seed=3), (5.0,))
    seen = period_statistics(POLICY, LatencyThresholds({}), [*one, *two, *whole])
    assert [group.pi for group in seen.groups] == [0.25, 0.5]
    assert seen.requests_candidate + seen.requests_champion == 8000


def test_a_request_without_a_latency_is_slow() -> None:
    period = ArmPeriod(0.5, True, 0.0, requests=10, failed=0, edges_ms=(5.0,), counts=(6, 1))
    assert period.slower(5.0, at_most=False) == 4


@pytest.mark.parametrize(("count", "known"), [(9, set()), (40, {"p50", "p90", "p95"}), (5000, None)])
def test_thresholds_come_from_enough_past_requests(count: int, known: set[str] | None) -> None:
    frame = requests(count)
    found = past_thresholds(arms(frame, GRID_MS)).ms
    assert set(found) == ({"p50", "p90", "p95", "p99", "p99.9"} if known is None else known)
    for name, ms in found.items():
        exact = float(np.quantile(frame["service_ms"], {"p50": 0.5, "p90": 0.9}.get(name, 0.95)))
        if name in ("p50", "p90"):
            assert exact / 1.16 <= ms <= exact * 1.35


def test_a_watch_never_counts_a_slow_failure_twice() -> None:
    levels = (Level(ERRORS, 0.01, 0.5, None), Level("latency/p95", 0.05, 0.5, 5.0))
    period = ArmPeriod(0.0, False, 120.0, 100, 8, (5.0,), (94, 6))
    slower = ArmPeriod(0.0, False, 120.0, 50, 1, (5.0,), (40, 10))
    both = watch_counts([period, slower], levels)
    assert both.slow == {"latency/p95": {2: (150, 18)}}
    counts = watch_counts([period], levels)
    assert counts.requests == 100
    assert counts.bad == {ERRORS: 8, "latency/p95": 8}
    assert counts.minutes == {2: (100, 8)}


@pytest.mark.parametrize(
    ("percent", "step_bp", "expected"), [(5, 1, 500), (0.5, 100, 100), (12.7, 100, 1200), (0, 100, 0)]
)
def test_shares_lie_on_the_platforms_grid(percent: float, step_bp: int, expected: int) -> None:
    assert grantable_bp(percent, step_bp) == expected
