"""A watch's stored decision, made again: the same word for word, and another if the counts are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from configs.policy import Policy
from evals.control import Answered, Cells, Previous, PreviousState, count_answers, decide, judge_control
from evals.watch import WatchCounts, WatchJudge, levels_of
from evals.watch_decisions import Asked, WatchLook, alpha_of, decide_again, record_of
from tests.configs.policies import valid_content

NOW = 1_800_000_000.0
COUNTS = WatchCounts(400, {"errors": 80, "latency/p95": 30}, stuck=2)


def policy() -> Policy:
    return Policy.model_validate({**valid_content(), "watch": {"latency_ms": {"p95": 50}}})


def record(one: Policy, *, pairs: int, previous: Previous, previous_fails: bool = False) -> dict[str, Any]:
    """What a look stores that found harm after a good hour, having asked the previous version."""
    good = WatchJudge(one)
    good.look(WatchCounts(2000, {"errors": 2, "latency/p95": 20}), now=NOW - 60)
    before = json.loads(json.dumps(good.as_dict()))
    judge = WatchJudge(one, before)
    harms = judge.look(COUNTS, now=NOW)
    control, cells, asks = None, {"errors": Cells()}, 1
    if pairs:
        answers = [Answered(n % 5 == 0, 5.0, previous_fails and n % 5 == 0, 5.0) for n in range(pairs)]
        cells = count_answers(answers, judge.levels)
        control = judge_control(one.watch.control, alpha_of(one.watch, asks), harms, cells, judge.levels)
    decision = decide("flights", "5", harms, previous, control, may_roll_back=one.watch.roll_back)
    asked = Asked(previous, cells, asks, control)
    return json.loads(json.dumps(record_of(one, "5", WatchLook(before, COUNTS, NOW), asked, harms, decision)))


@pytest.mark.parametrize(
    ("pairs", "state", "fails", "step"),
    [
        (0, PreviousState.WARM, False, "ASK"),
        (200, PreviousState.WARM, False, "ROLL_BACK"),
        (200, PreviousState.WARM, True, "ALERT"),
        (0, PreviousState.UNHEALTHY, False, "ALERT"),
    ],
)
def test_a_stored_decision_made_again_is_the_same(
    pairs: int, state: PreviousState, fails: bool, step: str
) -> None:
    stored = record(policy(), pairs=pairs, previous=Previous("4", state), previous_fails=fails)
    assert stored["decided"]["step"] == step
    assert decide_again(stored) == stored["decided"]


def test_other_counts_give_another_decision() -> None:
    stored = record(policy(), pairs=0, previous=Previous("4", PreviousState.WARM))
    stored["counts"] |= {"bad": {"errors": 0, "latency/p95": 0}, "stuck": 0}
    again = decide_again(stored)
    assert again["step"] == "GO_ON"
    assert again["digest"] != stored["decided"]["digest"]


def test_all_questions_of_one_harm_share_alpha() -> None:
    one = policy()
    assert sum(alpha_of(one.watch, asks) for asks in range(10_000)) == pytest.approx(
        one.watch.alpha, rel=1e-3
    )
    assert {level.name for level in levels_of(one)} == {"errors", "latency/p95"}
