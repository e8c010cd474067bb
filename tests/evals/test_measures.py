"""Named measures, strata and labels: counted where they are known, judged like service time."""

from __future__ import annotations

import json
import math
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from configs.measures import Measure, MeasureBudget, Quality
from configs.policy import Canary, Errors, Latency, Window
from evals.canary import CanaryJudge, Look, replay
from evals.looks import LatencyThresholds, LookStatistics, StoredLook
from evals.units import UnitTracker
from evals.users import Users
from evals.verdict import Outcome

from .streams import requests

POLICY = Canary(
    steps=(10, 50),
    bake_s=0,
    soak_s=0,
    settle_s=0,
    errors=Errors(margin=0.05),
    latency=Latency(quantiles=("p50",), margin=0.5),
    measures={
        "ttft_ms": Measure(margin=0.5, quantiles=("p50", "p90"), budget=MeasureBudget(p95=200)),
        "cost_usd": Measure(quantiles=()),
    },
)


def past(size: int = 2000, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    service = rng.lognormal(1, 0.5, size)
    return pd.DataFrame({"service_ms": service, "ttft_ms": service * 10, "cost_usd": service / 1000})


THRESHOLDS = LatencyThresholds.from_requests(POLICY, past())


def levels(look: LookStatistics, metric: str) -> dict[tuple[float, str], dict[int, int]]:
    found = {}
    for group in look.groups:
        for arm in ("candidate", "champion"):
            if counts := getattr(group, arm).get(metric):
                found[group.pi, arm] = {level: n for level, n in enumerate(counts) if n}
    return found


def traffic(rng: np.random.Generator, *, size: int, pi: float, slower: float, known: float) -> pd.DataFrame:
    """Requests with a time to first token that is known for some, times `slower` on the candidate."""
    ours = rng.random(size) < pi
    service = rng.lognormal(1, 0.5, size)
    ttft = np.where(rng.random(size) < known, service * 10 * np.where(ours, slower, 1), np.nan)
    return pd.DataFrame(
        {
            "time": np.arange(size) / size,
            "user": "",
            "share": pi,
            "candidate": ours,
            "failed": rng.random(size) < 0.01,
            "service_ms": service,
            "total_ms": service,
            "ttft_ms": ttft,
            "cost_usd": service / 1000,
        }
    )


def release(
    *, slower: float = 1.0, known: float = 0.7, seed: int = 1, looks: int = 60
) -> tuple[list[Look], list[StoredLook]]:
    rng = np.random.default_rng(seed)
    tracker, judge = UnitTracker(POLICY, "request", THRESHOLDS), CanaryJudge(POLICY, THRESHOLDS)
    made, stored = [], []
    for index in range(looks):
        frame = traffic(rng, size=400, pi=0.5, slower=slower, known=known)
        frame["time"] += index
        stored.append(StoredLook(tracker.observe(frame, index + 1.0), 1, float(index)))
        made.append(judge.look(stored[-1].statistics, step=1, seconds_at_step=float(index)))
        if made[-1].verdict.outcome in (Outcome.PASS, Outcome.FAIL):
            break
    return made, stored


def test_only_known_measures_are_taken() -> None:
    with pytest.raises(ValidationError, match="ttft_ms"):
        Canary.model_validate({"measures": {"ttft": {}}})
    assert (
        Canary.model_validate({"measures": {"itl_ms": {"tolerance": 0.3}}}).measures["itl_ms"].margin == 0.2
    )


def test_a_slow_first_token_rolls_back_and_says_so() -> None:
    made, stored = release(slower=2.0)
    verdict = made[-1].verdict
    assert verdict.outcome is Outcome.FAIL
    assert verdict.findings[0].metric.startswith("tolerance/ttft_ms/")
    assert "with more ttft_ms than the champion's past" in verdict.reason
    assert any(name.startswith("evidence_log10/rollback/tolerance/ttft_ms") for name in made[-1].numbers)
    again = [StoredLook.from_dict(json.loads(json.dumps(look.as_dict()))) for look in stored]
    assert replay(POLICY, THRESHOLDS, again) == made


def test_promotion_needs_the_measures_too() -> None:
    made, _ = release(slower=0.9)
    assert made[-1].verdict.outcome is Outcome.PASS
    asked = {finding.metric for finding in made[-1].verdict.findings}
    assert asked == {"errors", "margin/p50", "margin/ttft_ms/p50", "margin/ttft_ms/p90", "budget/ttft_ms/p95"}
    assert "ttft_ms p90" in made[-1].verdict.reason
    unknown, _ = release(known=0.0, looks=40)
    assert unknown[-1].verdict.outcome is Outcome.INCONCLUSIVE
    assert "ttft_ms" in unknown[-1].verdict.reason


def test_without_past_values_of_a_measure_nothing_passes() -> None:
    thresholds = LatencyThresholds.from_requests(POLICY, past().drop(columns="ttft_ms"))
    look = CanaryJudge(POLICY, thresholds).look(LookStatistics(), step=1, seconds_at_step=0)
    assert look.verdict.outcome is Outcome.ERROR
    assert "ttft_ms/p50, ttft_ms/p90" in look.verdict.reason


def test_unknown_values_are_censored() -> None:
    rows = [{"candidate": True}, {"candidate": True}, {}, {}]
    frame = requests(rows).assign(ttft_ms=[1e6, math.nan, math.nan, 1.0])
    look = UnitTracker(POLICY, "request", THRESHOLDS).observe(frame, 10)
    assert levels(look, "tolerance/ttft_ms/p50") == {(0.05, "candidate"): {20: 1}, (0.05, "champion"): {0: 1}}
    assert levels(look, "errors") == {(0.05, "candidate"): {0: 2}, (0.05, "champion"): {0: 2}}
    assert levels(look, "tolerance/cost_usd/p50") == {}
    assert (look.groups[0].entered_candidate, look.groups[0].entered_champion) == (2, 2)


def test_a_user_enters_a_measure_with_the_first_known_request() -> None:
    policy = POLICY.model_copy(update={"window": Window(requests=2, seconds=10)})
    rows = [{"user": "a", "time": 0.0}, {"user": "a", "time": 1.0}, {"user": "a", "time": 2.0}]
    frame = requests(rows).assign(ttft_ms=[math.nan, 1e6, 1.0])
    look = UnitTracker(policy, "user", THRESHOLDS).observe(frame, 100)
    assert levels(look, "tolerance/ttft_ms/p50") == {(0.05, "champion"): {10: 1}}
    assert levels(look, "errors") == {(0.05, "champion"): {0: 1}}


def test_a_measure_that_one_version_reports_less_often_says_nothing() -> None:
    rng = np.random.default_rng(2)
    uneven = CanaryJudge(POLICY, THRESHOLDS)
    look = uneven.look(LookStatistics(), step=1, seconds_at_step=0)
    for _ in range(12):
        quiet = traffic(rng, size=400, pi=0.5, slower=1.0, known=1.0)
        quiet.loc[quiet["candidate"] & (rng.random(400) < 0.8), "ttft_ms"] = math.nan
        seen = UnitTracker(POLICY, "request", THRESHOLDS).observe(quiet, 10.0)
        look = uneven.look(seen, step=1, seconds_at_step=0)
    assert look.verdict.outcome is Outcome.INCONCLUSIVE
    assert "one version reports it more often" in look.verdict.reason
    assert all(
        value <= 0
        for name, value in look.numbers.items()
        if name.startswith("evidence_log10/rollback/") and "ttft_ms" in name
    )


def test_weights_of_all_questions_are_one() -> None:
    from evals.evidence import Evidence

    for quality in (False, True):
        harms = Evidence(POLICY, THRESHOLDS, quality=quality).harms()
        assert sum(harm.weight for harm in harms) == pytest.approx(1)
        latency = [harm.weight for harm in harms if "/" in harm.metric]
        assert sum(latency) == pytest.approx(0.4 / (1.0 if quality else 0.8))
        of_ttft = sum(harm.weight for harm in harms if "ttft_ms" in harm.metric)
        assert of_ttft == pytest.approx(sum(latency) / 3)


# Strata ------------------------------------------------------------------------------------------


def test_like_is_compared_with_like() -> None:
    rng = np.random.default_rng(4)
    size = 4000
    stratum = np.where(rng.random(size) < 0.5, "short", "long")
    service = rng.lognormal(0, 0.3, size) * np.where(stratum == "long", 100, 1)
    frame = pd.DataFrame({"service_ms": service, "stratum": stratum})
    frame.loc[:4, "stratum"] = "rare"
    thresholds = LatencyThresholds.from_requests(POLICY, frame)
    assert set(thresholds.strata) == {"long", "short"}
    assert thresholds.limit("p50", "long") == pytest.approx(100, rel=0.1)
    assert thresholds.limit("p50", "short") == pytest.approx(1, rel=0.1)
    assert thresholds.limit("p50", "rare") == thresholds.limit("p50") == thresholds.ms["p50"]
    assert LatencyThresholds.from_dict(json.loads(json.dumps(thresholds.as_dict()))) == thresholds
    seen = requests(
        [{"service_ms": 50.0}, {"service_ms": 50.0}, {"service_ms": 50.0, "candidate": True}, {}]
    ).assign(stratum=["long", "short", "short", math.nan])
    look = UnitTracker(POLICY, "request", thresholds).observe(seen, 10)
    assert levels(look, "tolerance/p50") == {(0.05, "candidate"): {20: 1}, (0.05, "champion"): {0: 2, 20: 1}}


# Labels ------------------------------------------------------------------------------------------

LABELS = POLICY.model_copy(update={"measures": {}, "quality": Quality(margin=0.2)})
NO_LATENCY = LatencyThresholds({})


def labelled(by: Literal["user", "request"] = "request", policy: Canary = LABELS) -> UnitTracker:
    return UnitTracker(policy, by, NO_LATENCY, quality=True)


def test_a_unit_bets_when_its_label_is_there() -> None:
    watching = labelled()
    frame = requests([{"candidate": True}, {}, {}]).assign(
        request_id=["a", "b", "c"], quality=[math.nan, 0.5, math.nan]
    )
    look = watching.observe(frame, 10)
    assert levels(look, "quality") == {(0.05, "champion"): {10: 1}}
    assert levels(look, "errors")[0.05, "candidate"] == {0: 1}
    later = watching.observe(requests().assign(request_id=[]), 20, {"a": 0.0, "unknown": 1.0})
    assert levels(later, "quality") == {(0.05, "candidate"): {20: 1}}
    assert levels(later, "errors") == {}
    again = watching.observe(requests(), 30, {"a": 0.0, "b": 0.0})
    assert again == LookStatistics()
    assert levels(watching.observe(requests(), 40, {"c": 1.0}), "quality") == {(0.05, "champion"): {0: 1}}


def test_a_user_gives_one_quality_value_a_share_however_late() -> None:
    watching = labelled("user")
    rows = [{"user": "a", "time": float(t)} for t in range(4)] + [{"user": "a", "time": 50.0, "share": 0.5}]
    frame = requests(rows).assign(request_id=list("abcde"))
    assert levels(watching.observe(frame, 100), "quality") == {}
    first = watching.observe(requests(), 110, {"c": 1.0, "b": 0.0})
    assert levels(first, "quality") == {(0.05, "champion"): {10: 1}}
    assert levels(watching.observe(requests(), 120, {"a": 0.0}), "quality") == {}
    moved = watching.observe(requests(), 130, {"e": 0.0, "d": 0.0})
    assert levels(moved, "quality") == {(round(0.45 / 0.95, 12), "champion"): {20: 1}}


def test_scores_out_of_range_are_no_labels() -> None:
    frame = requests([{}, {}, {}]).assign(quality=[-0.1, 1.2, 1.0])
    assert levels(labelled().observe(frame, 10), "quality") == {(0.05, "champion"): {0: 1}}


def test_requests_stop_waiting_for_labels_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.units.UNLABELLED_MAX", 2)
    watching = labelled()
    watching.observe(requests([{}, {}, {}]).assign(request_id=["a", "b", "c"]), 10)
    assert levels(watching.observe(requests(), 20, {"a": 1.0, "c": 1.0}), "quality") == {
        (0.05, "champion"): {0: 1}
    }


def quality_release(rng: np.random.Generator, *, worse: float, looks: int = 40) -> Look:
    """Labels of both arms come after a delay that depends on the request; users repeat."""
    users, size = 400, 300
    skill, bucket = rng.uniform(0.5, 1.0, users), rng.random(users)
    tracker, judge = labelled("user"), CanaryJudge(LABELS, NO_LATENCY, quality=True)
    due: dict[int, dict[str, float]] = {}
    look = judge.look(LookStatistics(), step=0, seconds_at_step=0)
    for index in range(looks):
        step, share = (0, 0.1) if index < looks // 2 else (1, 0.5)
        user = rng.integers(0, users, size) + (users * index // 4) % 7919
        user %= users
        ours = bucket[user] < share
        score = np.clip(skill[user] - worse * ours + rng.normal(0, 0.1, size), 0, 1)
        names = [f"{index}-{n}" for n in range(size)]
        frame = pd.DataFrame(
            {
                "time": index + np.arange(size) / size,
                "user": user.astype(str),
                "share": share,
                "candidate": ours,
                "failed": False,
                "service_ms": 1.0,
                "total_ms": 1.0,
                "request_id": names,
            }
        )
        for name, value, delay in zip(names, score, rng.integers(0, 12, size), strict=True):
            due.setdefault(index + int(delay), {})[name] = float(value)
        seen = tracker.observe(frame, index + 1.0, due.get(index))
        look = judge.look(seen, step=step, seconds_at_step=float(index))
        if look.verdict.outcome is Outcome.FAIL:
            break
    return look


@pytest.mark.slow
def test_late_labels_keep_the_promise_and_show_harm() -> None:
    rng = np.random.default_rng(7)
    fine = [quality_release(rng, worse=0.0) for _ in range(40)]
    assert sum(look.verdict.outcome is Outcome.FAIL for look in fine) <= 2
    bad = [quality_release(rng, worse=0.4) for _ in range(5)]
    assert all(look.verdict.outcome is Outcome.FAIL for look in bad)
    assert "badness by labels" in bad[0].verdict.reason


def test_quality_may_be_required() -> None:
    judge = CanaryJudge(LABELS, LatencyThresholds({"p50": 1.0}), quality=True)
    look = judge.look(LookStatistics(), step=0, seconds_at_step=0)
    assert "quality" in {finding.metric for finding in look.verdict.findings}


# The bounded table of users ----------------------------------------------------------------------


def test_only_so_many_users_are_remembered() -> None:
    users = Users(1, Window(requests=1), most=3)

    def arrive(*keys: int, share: float, candidate: bool = False) -> list[int]:
        table = np.array(sorted(keys), np.uint64)
        first = np.array([keys.index(int(key)) for key in table])
        side, start = np.full(table.size, candidate), np.zeros(table.size)
        _, enters, row = users.admit(table, first, side, start, share=share)
        assert np.array_equal(row >= 0, enters)
        users.close(np.ones(users.open_count, np.bool_))
        return table[enters].tolist()

    assert arrive(9, 7, 8, 1, share=0.1) == [7, 8, 9]
    assert arrive(1, 2, share=0.1) == []
    assert arrive(1, 7, 8, share=0.5) == [7, 8]
    assert users.seen == 3
