"""The watch: never loud without harm however long it looks, quick with harm, and one memory over runs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from configs.policy import Policy
from evals.burn import BAD_MIN, add_minutes, burns
from evals.control import (
    Answered,
    Cells,
    ControlAnswer,
    Previous,
    PreviousState,
    Step,
    count_answers,
    decide,
    judge_control,
)
from evals.verdict import Outcome
from evals.watch import WatchCounts, WatchJudge, count_requests, levels_of
from tests.configs.policies import valid_content

NOW = 1_800_000_000.0


def policy(**watch: object) -> Policy:
    serving = {"runtime": "vllm" if "measures" in watch else "pyfunc"}
    return Policy.model_validate({**valid_content(), "watch": watch, "serving": serving})


def counts(requests: int, failed: int, **bad: int) -> WatchCounts:
    return WatchCounts(requests, {"errors": failed, **bad})


def test_the_levels_share_alpha() -> None:
    both = levels_of(policy(latency_ms={"p50": 20, "p95": 50}, quality=0.8))
    assert [level.name for level in both] == ["errors", "latency/p50", "latency/p95", "quality"]
    assert sum(level.weight for level in both) == pytest.approx(1)
    assert {level.name: level.limit for level in both}["latency/p95"] == pytest.approx(0.05)
    (alone,) = levels_of(policy())
    assert alone.weight == 1


def test_the_availability_is_the_level_of_failures_where_nothing_else_is() -> None:
    (alone,) = levels_of(policy(error_rate=None, availability=0.995))
    assert (alone.name, alone.limit) == ("errors", pytest.approx(0.005))
    (both,) = levels_of(policy(error_rate=0.02, availability=0.995))
    assert both.limit == 0.02
    assert levels_of(policy(error_rate=None, availability=None)) == ()
    judge = WatchJudge(policy(error_rate=None, availability=0.995))
    assert [harm.level.name for harm in judge.look(counts(400, 40), now=NOW)] == ["errors"]


def test_the_canarys_budgets_hold_after_it_unless_the_watch_has_its_own() -> None:
    content = {**valid_content(), "canary": {"latency": {"budget_ms": {"p95": 80}}}}
    assert levels_of(Policy.model_validate(content))[1].budget_ms == 80
    content["watch"] = {"latency_ms": {"p99": 200}}
    assert [level.name for level in levels_of(Policy.model_validate(content))] == ["errors", "latency/p99"]


@pytest.mark.parametrize(("looks", "per_look"), [(2000, 5), (2000, 300)])
def test_a_service_at_its_level_rarely_alarms_however_often_one_looks(looks: int, per_look: int) -> None:
    """At exactly the level, the hardest null: at most alpha of the watches ever alarm."""
    rng = np.random.default_rng(11)
    one = policy(alpha=0.05, error_rate=0.02)
    alarms = 0
    for _ in range(60):
        judge = WatchJudge(one)
        drawn = rng.binomial(per_look, 0.02, size=looks)
        alarms += any(judge.look(counts(per_look, int(bad)), now=NOW) for bad in drawn)
    assert alarms <= 8, "60 watches at 5%: 3 expected at most, 8 is its 99.7% point"


@pytest.mark.parametrize("healthy_looks", [0, 20_000])
def test_harm_is_seen_within_a_second_even_after_a_long_good_time(healthy_looks: int) -> None:
    judge = WatchJudge(policy())
    rng = np.random.default_rng(3)
    for bad in rng.binomial(500, 0.002, size=healthy_looks):
        assert judge.look(counts(500, int(bad)), now=NOW) == ()
    requests = 0
    while not judge.look(counts(10, int(rng.binomial(10, 0.2))), now=NOW):
        requests += 10
        assert requests < 200, "20% errors against 1% take about a hundred requests"


def test_harm_is_over_when_it_is_not_shown_again() -> None:
    judge = WatchJudge(policy(clear_s=60))
    (harm,) = judge.look(counts(300, 60), now=NOW)
    assert harm.finding.outcome is Outcome.FAIL
    assert "20.0% of 300 requests failed" in harm.finding.reason
    assert judge.look(counts(300, 0), now=NOW + 50)
    (again,) = judge.look(counts(300, 60), now=NOW + 55)
    assert (again.since, again.last) == (NOW, NOW + 55)
    assert judge.look(counts(300, 0), now=NOW + 120) == ()


def test_what_one_run_stored_the_next_goes_on_from() -> None:
    one = policy(latency_ms={"p95": 50})
    rng = np.random.default_rng(5)
    looks = [
        counts(40, int(rng.binomial(40, 0.03)), **{"latency/p95": int(rng.binomial(40, 0.06))})
        for _ in range(80)
    ]
    whole = WatchJudge(one)
    told = WatchJudge(one)
    for number, look in enumerate(looks):
        mine = whole.look(look, now=NOW + number)
        told = WatchJudge(one, json.loads(json.dumps(told.as_dict())))
        assert told.look(look, now=NOW + number) == mine
        assert told.numbers() == whole.numbers()
    assert whole.numbers()["errors"] != 0


def test_a_changed_level_is_a_new_question() -> None:
    judge = WatchJudge(policy())
    judge.look(counts(300, 4), now=NOW)
    state = judge.as_dict()
    assert WatchJudge(policy(), state).numbers() == judge.numbers()
    assert WatchJudge(policy(error_rate=0.05), state).numbers()["errors"] == pytest.approx(0)


def test_no_data_is_neither_harm_nor_health() -> None:
    judge = WatchJudge(policy())
    assert judge.look(WatchCounts(), now=NOW) == ()
    assert judge.verdict(WatchCounts(), NOW).outcome is Outcome.INCONCLUSIVE
    assert judge.numbers() == pytest.approx({"errors": 0}), "no requests cost nothing"


def test_requests_that_hang_count_before_they_end() -> None:
    one = policy(latency_ms={"p95": 50})
    judge = WatchJudge(one)
    look = WatchCounts(20, {"errors": 0, "latency/p95": 1}, stuck=40)
    (harm,) = judge.look(look, now=NOW)
    assert harm.level.name == "latency/p95"
    assert "40 more still wait" in harm.finding.reason
    assert WatchJudge(one).look(WatchCounts(20, {"errors": 0, "latency/p95": 1}), now=NOW) == ()


def test_scores_below_the_level_are_harm() -> None:
    judge = WatchJudge(policy(quality=0.9))
    low = tuple(40 if level == 10 else 0 for level in range(21))
    (harm,) = judge.look(WatchCounts(0, {}, 0, low), now=NOW)
    assert harm.level.name == "quality"
    assert "mean score 0.500 of 40" in harm.finding.reason


def test_only_the_watched_version_is_counted() -> None:
    frame = pd.DataFrame(
        {
            "version": ["2", "2", "1", "2"],
            "failed": [True, False, True, False],
            "total_ms": [3.0, 80.0, 900.0, 10.0],
            "time": [60.0, 61.0, 61.0, 125.0],
        }
    )
    seen = count_requests(frame, levels_of(policy(latency_ms={"p95": 50})), version="2")
    assert (seen.requests, seen.bad) == (3, {"errors": 1, "latency/p95": 2}), (
        "a fast failure is no quick answer"
    )
    assert seen.minutes == {1: (2, 1), 2: (1, 0)}
    assert seen.slow == {"latency/p95": {1: (2, 2), 2: (1, 0)}}


# -- measures ----------------------------------------------------------------------------------------


def measured(**measures: dict[str, float]) -> Policy:
    """A policy with these budgets, by measure and quantile."""
    return policy(measures={name: {"budget": budget} for name, budget in measures.items()})


def test_measures_are_levels_beside_the_others() -> None:
    levels = levels_of(measured(ttft_ms={"p50": 300, "p95": 800}, cost_usd={"p99": 0.02}))
    assert [level.name for level in levels] == ["errors", "ttft_ms/p50", "ttft_ms/p95", "cost_usd/p99"]
    assert [level.limit for level in levels[1:]] == [0.5, 0.05, 0.01]
    assert [level.most for level in levels] == [None, 300, 800, 0.02]
    assert [level.gauge for level in levels] == ["", "ttft_ms", "ttft_ms", "cost_usd"]
    assert sum(level.weight for level in levels) == pytest.approx(1)


def test_only_requests_whose_measure_is_known_count_for_it() -> None:
    frame = pd.DataFrame(
        {
            "version": ["2", "2", "2", "1", "2"],
            "failed": [False, False, True, False, False],
            "total_ms": [9.0] * 5,
            "time": [NOW] * 5,
            "ttft_ms": [900.0, 800.0, np.nan, 900.0, np.nan],
        }
    )
    levels = levels_of(measured(ttft_ms={"p95": 800}, itl_ms={"p95": 50}))
    seen = count_requests(frame, levels, version="2")
    assert seen.requests == 4
    assert seen.bad == {"errors": 1, "ttft_ms/p95": 1, "itl_ms/p95": 0}
    assert seen.known == {"ttft_ms/p95": 2, "itl_ms/p95": 0}
    assert seen.slow == {}
    verdict = WatchJudge(measured(ttft_ms={"p95": 800}, itl_ms={"p95": 50})).verdict(seen, NOW)
    assert verdict.reason == "no evidence of harm: 4 requests, errors 25.00%, ttft_ms/p95 50.00%"


def slow_starts(requests: int, slow: int, known: int) -> WatchCounts:
    return WatchCounts(requests, {"errors": 0, "ttft_ms/p95": slow}, known={"ttft_ms/p95": known})


def test_a_measure_over_its_budget_is_harm() -> None:
    one = measured(ttft_ms={"p95": 800})
    judge = WatchJudge(one)
    assert judge.look(slow_starts(4000, 10, 200), now=NOW) == (), "10 of 200 is what a p95 leaves"
    (harm,) = judge.look(slow_starts(4000, 60, 200), now=NOW)
    assert harm.level.name == "ttft_ms/p95"
    assert "time to first token, ms: 30.0% of 200 requests were over 800, the level is 0.05" in (
        harm.finding.reason
    )
    kept = json.loads(json.dumps(judge.as_dict()))
    assert WatchJudge(one, kept).harms(NOW) == judge.harms(NOW)
    assert WatchJudge(measured(ttft_ms={"p95": 700}), kept).harms(NOW) == (), "another question"
    assert count_answers([], levels_of(one)).keys() == {"errors"}, "replays have no first token"


def test_requests_without_the_measure_are_no_evidence() -> None:
    judge = WatchJudge(measured(ttft_ms={"p95": 800}))
    for _ in range(50):
        assert judge.look(slow_starts(100, 0, 0), now=NOW) == ()
    assert judge.numbers()["ttft_ms/p95"] == pytest.approx(0)


def test_a_measure_at_its_budget_rarely_alarms_however_often_one_looks() -> None:
    rng = np.random.default_rng(12)
    one = policy(
        alpha=0.05, error_rate=None, availability=None, measures={"ttft_ms": {"budget": {"p95": 800}}}
    )
    alarms = 0
    for _ in range(60):
        judge = WatchJudge(one)
        drawn = rng.binomial(20, 0.05, size=500)
        alarms += any(judge.look(slow_starts(40, int(slow), 20), now=NOW) for slow in drawn)
    assert alarms <= 8, "60 watches at 5%: 3 expected at most, 8 is its 99.7% point"


# -- the control and the decision --------------------------------------------------------------------


def harm_of(one: Policy, rate: float = 0.2):
    return WatchJudge(one).look(counts(400, int(400 * rate)), now=NOW)


def asked(champion: float, previous: float, pairs: int, *, seed: int = 1, **watch: object):
    one = policy(**watch)
    rng = np.random.default_rng(seed)
    answers = [
        Answered(bool(rng.random() < champion), 5.0, bool(rng.random() < previous), 5.0) for _ in range(pairs)
    ]
    levels = levels_of(one)
    return judge_control(
        one.watch.control, one.watch.alpha, harm_of(one), count_answers(answers, levels), levels
    )


def test_a_previous_version_that_does_not_fail_is_better() -> None:
    assert asked(0.2, 0.0, 100).answer is ControlAnswer.BETTER


def test_two_versions_that_fail_alike_both_suffer() -> None:
    told = asked(0.2, 0.2, 100)
    assert told.answer is ControlAnswer.BOTH
    assert "both versions suffer" in told.reason


def test_too_few_pairs_never_say_that_both_suffer() -> None:
    told = asked(0.9, 0.9, 20)
    assert (told.answer, told.is_final) == (ControlAnswer.UNKNOWN, False)


def test_harm_that_the_replays_do_not_show_stays_unknown() -> None:
    told = asked(0.0, 0.0, 300)
    assert (told.answer, told.is_final) == (ControlAnswer.UNKNOWN, True)


def test_going_back_must_remove_enough_of_the_harm() -> None:
    assert asked(0.9, 0.3, 300).answer is ControlAnswer.BETTER
    assert asked(0.9, 0.6, 300).answer is ControlAnswer.BOTH


def test_a_previous_version_that_is_worse_elsewhere_is_left_to_a_person() -> None:
    one = policy(latency_ms={"p95": 50})
    answers = [Answered(n % 4 == 0, 5.0, False, 5.0 if n % 4 == 0 else 90.0) for n in range(120)]
    levels = levels_of(one)
    harms = WatchJudge(one).look(counts(400, 80, **{"latency/p95": 10}), now=NOW)
    told = judge_control(one.watch.control, 0.01, harms, count_answers(answers, levels), levels)
    assert told.answer is ControlAnswer.WORSE
    assert "worse at latency/p95" in told.reason


@pytest.mark.parametrize("previous", [0.02, 0.2])
def test_versions_that_are_alike_are_rarely_told_apart(previous: float) -> None:
    """The null of the control: a false 'better' in at most alpha of the questions, however often asked."""
    false = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        one = policy()
        levels, harms = levels_of(one), harm_of(one)
        cells = {"errors": Cells()}
        for _ in range(12):
            answers = [
                Answered(bool(rng.random() < previous), 1.0, bool(rng.random() < previous), 1.0)
                for _ in range(25)
            ]
            cells = {"errors": cells["errors"].plus(count_answers(answers, levels)["errors"])}
            told = judge_control(one.watch.control, 0.01, harms, cells, levels)
            false += told.answer is ControlAnswer.BETTER
            if told.is_final:
                break
    assert false <= 5, "150 at 1%: 1.5 expected at most"


WARM = Previous("4", PreviousState.WARM)


@pytest.mark.parametrize(
    ("previous", "control", "step", "words"),
    [
        (WARM, None, Step.ASK, ""),
        (WARM, (0.2, 0.0), Step.ROLL_BACK, "previous version on 0.0%"),
        (WARM, (0.2, 0.2), Step.ALERT, "both versions suffer"),
        (WARM, (0.0, 0.0), Step.ALERT, "does not tell them apart"),
        (Previous("4", PreviousState.UNHEALTHY, "1 of 1 replicas down"), None, Step.ALERT, "not healthy"),
        (Previous("", PreviousState.NONE), None, Step.ALERT, "No previous version"),
        (Previous("4", PreviousState.RELEASING), None, Step.ALERT, "its ramp is paused"),
        (Previous("4", PreviousState.INCOMPATIBLE, "needs column x"), None, Step.ALERT, "break clients"),
        (Previous("4", PreviousState.AWAY, "no spool"), None, Step.ALERT, "is not known"),
    ],
)
def test_the_decision_table(previous: Previous, control, step: Step, words: str) -> None:
    told = None if control is None else asked(*control, 300)
    decision = decide("flights", "5", harm_of(policy()), previous, told, may_roll_back=True)
    assert decision.step is step
    assert words in decision.reason
    assert decision.step is not Step.ALERT or decision.next_step


def test_without_harm_nothing_is_asked_and_nothing_moves() -> None:
    decision = decide("flights", "5", (), WARM, asked(0.2, 0.0, 100), may_roll_back=True)
    assert decision.step is Step.GO_ON


def test_a_policy_that_forbids_it_only_alerts() -> None:
    decision = decide("flights", "5", harm_of(policy()), WARM, asked(0.2, 0.0, 100), may_roll_back=False)
    assert decision.step is Step.ALERT
    assert "interlock rollback flights" in decision.next_step


# -- burn rates ----------------------------------------------------------------------------------------


def burned(failures_by_minute: list[int], requests: int = 600):
    """Rules of the default policy that alert after these minutes."""
    watch = policy().watch
    kept: tuple = ()
    for number, failures in enumerate(failures_by_minute):
        minute = int(NOW // 60) + number
        kept = add_minutes(kept, {minute: (requests, failures)}, now=minute * 60 + 60, keep_s=259_200)
    end = (int(NOW // 60) + len(failures_by_minute)) * 60
    assert watch.availability is not None
    return burns(watch.burn, watch.availability, kept, now=end)


def test_a_fast_burn_pages_and_ends_soon_after_its_cause() -> None:
    """1.5% errors against 99.9%: 15 times the even speed."""
    assert [burn.rule.rate for burn in burned([9] * 60)] == [14.4, 6, 1]
    assert 14.4 not in [burn.rule.rate for burn in burned([9] * 60 + [0] * 6)], "the short window is clean"


def test_a_slow_burn_only_warns() -> None:
    (burn,) = burned([1] * 600)
    assert (burn.rule.rate, burn.rule.severity) == (1, "warning")
    assert burn.long_rate == pytest.approx(1 / 600 / 0.001)


def test_few_failures_at_little_traffic_never_page() -> None:
    assert burned([1] * (BAD_MIN - 1), requests=2) == ()
    assert burned([1] * BAD_MIN, requests=2)


def test_three_days_fit_into_few_buckets_and_lose_nothing() -> None:
    kept: tuple = ()
    start = int(NOW // 1800) * 30
    for number in range(3 * 24 * 60):
        kept = add_minutes(kept, {start + number: (10, 1)}, now=(start + number) * 60 + 60, keep_s=259_200)
    assert len(kept) <= 270
    assert sum(bucket[2] for bucket in kept) == 3 * 24 * 60 * 10
