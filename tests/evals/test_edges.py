"""What each module does at its edges: nothing to judge, nothing to measure, what lies beyond."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.generation import Generation
from configs.load_test import LoadTest
from configs.policy import Canary, Latency, LatencyBudget, Policy, Shadow
from configs.watch import BurnWindow
from evals.agreement import order_bias
from evals.badness import badness, families
from evals.burn import add_minutes, burns
from evals.control import Cells, Previous, PreviousState, Step, count_answers, decide, judge_control
from evals.decisions import Recorded, differs, digest, replay_canary, replay_shadow
from evals.evidence import Evidence
from evals.generation import Contest, Measures, digest_of, evaluate_generation
from evals.load import Arrivals, LoadStep, measure
from evals.looks import ERRORS, LatencyThresholds, LookStatistics, UnitGroup
from evals.periods import ArmPeriod, past_thresholds, watch_counts
from evals.ramp import StepPlan, plan_words
from evals.shadow import no_shadow, out_of_time
from evals.units import UnitTracker
from evals.verdict import Finding, Outcome, Verdict
from evals.watch import Level, WatchCounts, WatchJudge, count_requests
from tests.configs.policies import valid_content

from .streams import requests

NOW = 1_800_000_000.0


def watched(**watch: object) -> Policy:
    serving = {"runtime": "vllm" if "measures" in watch else "pyfunc"}
    return Policy.model_validate({**valid_content(), "watch": watch, "serving": serving})


# Verdicts and plans for people -------------------------------------------------------------------


def test_a_verdict_is_read_back_as_it_was_stored() -> None:
    finding = Finding("errors", Outcome.FAIL, "more errors", candidate=0.1, champion=0.01, units=7)
    verdict = Verdict(Outcome.FAIL, "more errors", (finding,), 12.0, "fewer errors")
    assert Verdict.from_dict({**verdict.as_dict(), "time": 3.0}) == verdict
    plain = {"outcome": "PASS", "reason": "all well", "findings": []}
    assert Verdict.from_dict(plain) == Verdict(Outcome.PASS, "all well")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(119, "about 119 s"), (120, "about 2 min"), (7200, "about 2 h"), (172_800, "about 2 days")],
)
def test_a_steps_plan_in_words(seconds: float, words: str) -> None:
    plan = StepPlan(5.0, 2.0, 100.0, 50.0, seconds, None)
    assert plan_words(plan) == f"5%: 2 times the errors caught in {words}, no more errors shown never"
    never = dataclasses.replace(plan, seconds_to_catch=None, seconds_to_clear=seconds)
    assert plan_words(never) == f"5%: 2 times the errors caught never, no more errors shown in {words}"


def test_a_shadow_that_is_off_or_out_of_time() -> None:
    off = Shadow(enabled=False, reason="no replays allowed")
    assert no_shadow(off).outcome is Outcome.PASS
    assert "no replays allowed" in no_shadow(off).reason
    late = out_of_time(Shadow(timeout_s=60, score_tolerance=0.1), Verdict(Outcome.PASS, "3 pairs"))
    assert late.outcome is Outcome.INCONCLUSIVE
    assert late.reason == "no decision within 60 s: 3 pairs"


# Requests and units ------------------------------------------------------------------------------


def test_cold_answers_are_slow_for_nobody() -> None:
    """While a replica warms up its times say nothing relative; absolute budgets still hold."""
    policy = Canary(latency=Latency(budget_ms=LatencyBudget(p95=5)))
    thresholds = LatencyThresholds({"p50": 1.0})
    frame = requests([{}, {}]).assign(service_ms=9.0, total_ms=9.0, is_warm=[True, False])
    (family,) = families(policy, thresholds)
    bad, known = badness(family, thresholds, frame, np.array([False, False]))
    of = dict(zip(family.metrics, bad.tolist(), strict=True))
    assert of["tolerance/p50"] == of["margin/p50"] == [1, 0]
    assert of["budget/p95"] == [1, 1]
    assert known.all()


def test_a_look_at_nothing_is_empty() -> None:
    assert LookStatistics().is_empty
    assert not LookStatistics(requests_champion=1).is_empty


def test_a_group_without_closed_units_changes_no_evidence() -> None:
    evidence = Evidence(Canary(), LatencyThresholds({"p50": 1.0}))
    before = [question.log_e for question in evidence.harms()]
    assert evidence.play(UnitGroup(0.05, 3, 60)) == 0
    assert [question.log_e for question in evidence.harms()] == before


def test_labels_come_in_a_later_look_or_never() -> None:
    tracker = UnitTracker(Canary(settle_s=0), "request", LatencyThresholds({}), quality=True)
    tracker.observe(requests([{}, {}]).assign(request_id=["a", "b"]), 1.0)
    assert not tracker.observe(requests(), 2.0).groups
    (group,) = tracker.observe(requests(), 3.0, {"b": 0.0}).groups
    assert group.champion["quality"][-1] == 1


# Whole periods and watches -----------------------------------------------------------------------


def test_past_times_beyond_every_edge_give_no_threshold() -> None:
    beyond = ArmPeriod(0.0, False, 0.0, 100, 0, (1.0, 2.0), (0, 0, 100))
    assert past_thresholds([beyond]) == LatencyThresholds({})


def test_periods_know_nothing_of_labels() -> None:
    counted = watch_counts(
        [ArmPeriod(0.0, False, 60.0, 10, 1, (5.0,), (10, 0))], (Level("quality", 0.1, 1.0, None),)
    )
    assert counted.bad == {}
    assert counted.minutes == {1: (10, 1)}


def test_periods_know_nothing_of_measures() -> None:
    one = watched(error_rate=None, availability=None, measures={"ttft_ms": {"budget": {"p95": 5}}})
    judge = WatchJudge(one)
    counted = watch_counts([ArmPeriod(0.0, False, 60.0, 10, 1, (5.0,), (10, 0))], judge.levels)
    assert counted.bad == counted.known == {}
    assert judge.look(counted, now=NOW) == ()


def test_a_watch_without_levels_or_requests_says_so() -> None:
    nothing = watched(error_rate=None, availability=None)
    assert "no service level" in WatchJudge(nothing).verdict(WatchCounts(5, {}), NOW).reason
    judge = WatchJudge(watched(error_rate=0.02))
    assert judge.verdict(WatchCounts(), NOW).reason == "no requests since the last look"
    calm = WatchCounts(200, {ERRORS: 1})
    judge.look(calm, now=NOW)
    assert judge.verdict(calm, NOW).reason == "no evidence of harm: 200 requests, errors 0.50%"
    broken = WatchCounts(200, {ERRORS: 150})
    judge.look(broken, now=NOW + 1)
    verdict = judge.verdict(broken, NOW + 1)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.findings


def test_a_watch_counts_no_labels_among_its_requests() -> None:
    frame = pd.DataFrame({"version": ["1"], "failed": [True], "total_ms": [1.0], "time": [NOW]})
    levels = (Level(ERRORS, 0.1, 0.5, None), Level("quality", 0.1, 0.5, None))
    assert count_requests(frame, levels, version="1").bad == {ERRORS: 1}


def test_a_budget_that_burns_says_how_fast_and_old_minutes_go() -> None:
    rule = BurnWindow(long_s=3600, short_s=300, rate=10, severity="critical")
    minute = int(NOW // 60)
    recent = add_minutes((), {minute - k: (100, 90) for k in range(5)}, now=NOW, keep_s=7200)
    (burn,) = burns((rule,), 0.99, recent, now=NOW)
    reason = burn.reason("error budget", "failed")
    assert reason.startswith("the error budget burns 90.0 times too fast over 1 h")
    assert reason.endswith("450 of 500 requests failed")
    later = add_minutes(recent, {}, now=NOW + 20_000, keep_s=7200)
    assert later == ()


def test_cells_add_up_and_harm_that_no_replay_shows_is_unknown() -> None:
    one, two = Cells(4, 1, 0, 1), Cells(2, 1, 1, 0)
    total = one.plus(two)
    assert total.as_dict() == {
        name: getattr(one, name) + getattr(two, name) for name in Cells.__dataclass_fields__
    }
    assert one.previous_rate == (one.previous_only + one.both) / one.pairs
    policy = watched(error_rate=0.01)
    told = judge_control(policy.watch.control, 0.01, (), {}, ())
    assert told.is_final
    assert "cannot show" in told.reason
    assert count_answers([], (Level("quality", 0.1, 1.0, None),)) == {}
    judge = WatchJudge(policy)
    harms = judge.look(WatchCounts(100, {ERRORS: 60}), now=NOW)
    away = decide("flights", "5", harms, Previous("", PreviousState.AWAY), None, may_roll_back=True)
    assert away.step is Step.ALERT
    assert "Whether the version before suffers too" in away.reason


# Load --------------------------------------------------------------------------------------------


def test_a_rate_without_answers_has_endless_times_and_survives_json() -> None:
    never = np.full(40, np.nan)
    due = np.arange(40) / 10
    step = measure(
        Arrivals(due, never, never, np.zeros(40, np.int64)),
        rate=10,
        policy=LoadTest(rate_per_s=10),
        budget=LatencyBudget(p95=50),
    )
    assert step.p95 == math.inf
    assert step.in_flight == 0
    plain = step.as_dict()
    assert plain["p95"] is None
    assert LoadStep.from_dict(plain) == step


def test_answers_that_came_at_once_were_under_way_together() -> None:
    at = np.full(40, 2.0)
    step = measure(
        Arrivals(at, at, at, np.full(40, 200)),
        rate=10,
        policy=LoadTest(rate_per_s=10),
        budget=LatencyBudget(p95=50),
    )
    assert step.in_flight >= 0
    assert step.was_on_time


# Language models ---------------------------------------------------------------------------------


def generation(*scorers: dict[str, Any], **values: Any) -> Generation:
    return Generation.model_validate(
        {"task": "generation", "data": "p.jsonl", "scorers": scorers, "min_prompts": 10, **values}
    )


def right(name: str = "exact_match") -> Measures:
    return Measures({name: np.ones((50, 1))}, np.zeros((50, 1), np.bool_))


SLICED = {
    "slices": [{"column": "topic", "metric": "exact_match", "margin": 0.05, "min_prompts": 20}],
}


def test_slices_need_a_champion_enough_prompts_and_a_measure() -> None:
    rule = generation({"kind": "exact_match", "margin": 0.05}, **SLICED)
    topics = {"topic": ("refund",) * 45 + ("battery",) * 5}
    first = evaluate_generation(rule, Contest(right(), None, "d", slices=topics))
    assert not any("where topic" in finding.metric for finding in first.findings)
    small = evaluate_generation(rule, Contest(right(), right(), "d", slices=topics))
    assert any("battery: under 20 prompts, not judged" in finding.reason for finding in small.findings)
    broken = Measures({"exact_match": np.full((50, 1), np.nan)}, np.zeros((50, 1), np.bool_))
    unmeasured = evaluate_generation(rule, Contest(broken, right(), "d", slices=topics))
    assert unmeasured.outcome is Outcome.ERROR
    assert not any("where topic" in finding.metric for finding in unmeasured.findings)


def test_the_first_version_wins_against_nobody() -> None:
    judge = {
        "api": {"url": "http://127.0.0.1:9/v1", "model": "judge"},
        "rubric": "Right.",
        "labelled_pairs": "pairs.jsonl",
    }
    rule = generation({"kind": "pairwise", "margin": 0.1}, judge=judge)
    shape = Measures({}, np.zeros((50, 1), np.bool_))
    verdict = evaluate_generation(rule, Contest(shape, None, "d"))
    assert not any(finding.metric.startswith("pairwise") for finding in verdict.findings)
    assert order_bias([]) == (0.0, 0.0)


def test_a_digest_depends_on_the_prompts_and_their_order() -> None:
    assert digest_of(["a", "b"]) != digest_of(["b", "a"])
    assert len(digest_of([])) == 64


# Decisions made again ----------------------------------------------------------------------------


def test_a_replay_of_nothing_and_of_looks_without_thresholds() -> None:
    nothing = replay_canary(Canary(), [])
    assert (nothing.looks, nothing.candidates, nothing.against(None)) == (0, (), None)
    stats: dict[str, Any] = {"groups": [], "requests": [0, 0], "late": [0, 0]}
    lost = replay_canary(Canary(), [Recorded(3, NOW, stats)])
    assert lost.difference is not None
    assert lost.difference.recomputed == "no look has the thresholds that it was judged by"
    assert lost.against({"outcome": "PASS", "reason": ""}) == lost.difference


def test_a_verdict_that_no_replay_gives_differs() -> None:
    kept = {"outcome": "PASS", "reason": "all well"}
    assert differs(kept, [Verdict(Outcome.PASS, "all well")]) is None
    other = differs(kept, [Verdict(Outcome.FAIL, "errors")])
    assert other is not None
    assert other.recomputed == "FAIL: errors"
    none = differs(kept, [])
    assert none is not None
    assert none.recomputed == "no verdict"


def test_a_shadow_that_is_off_is_replayed_as_one_verdict() -> None:
    replay = replay_shadow(Shadow(enabled=False, reason="none"), 0.01, Latency(), [])
    assert replay.against(no_shadow(Shadow(enabled=False, reason="none")).as_dict()) is None
    assert digest({"b": 1.0, "a": (1, 2)}) == digest({"a": [1, 2], "b": 1.0})
