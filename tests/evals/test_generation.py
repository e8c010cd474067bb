"""The gate of language models: thresholds, paired comparisons by prompt, the judge, what is not measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from configs.generation import Generation
from evals.agreement import Agreement, Preference, agreement, order_bias
from evals.generation import Contest, Measures, evaluate_generation
from evals.verdict import Outcome, Verdict

JUDGE = {
    "api": {"url": "http://127.0.0.1:9/v1", "model": "judge"},
    "rubric": "Right.",
    "labelled": "labelled.jsonl",
    "labelled_pairs": "pairs.jsonl",
}
TRUSTED = Agreement(0.9, 0.8, 0.97, 0.95, 200)
DOUBTFUL = Agreement(0.2, 0.0, 0.4, 0.6, 200)
TROUBLE = {"judge agreement on pairs": "503: not now"}


UNLABELLED = {key: JUDGE[key] for key in ("api", "rubric")}


def policy(*scorers: dict[str, Any], **values: Any) -> Generation:
    return Generation.model_validate(
        {"task": "generation", "data": "p.jsonl", "scorers": scorers, "min_prompts": 10, **values}
    )


def measures(values: Any, name: str = "exact_match", failed: Any = None) -> Measures:
    table = np.atleast_2d(np.asarray(values, float).T).T
    table = table.reshape(len(table), -1)
    return Measures({name: table}, np.zeros(table.shape, bool) if failed is None else failed)


def judged(rule: Generation, ours: Any, theirs: Any = None, **values: Any) -> Verdict:
    name = rule.scorers[0].metric
    champion = None if theirs is None else measures(theirs, name)
    return evaluate_generation(rule, Contest(measures(ours, name), champion, "digest", **values))


RIGHT = np.ones(100)
WRONG = np.zeros(100)
HALF = np.arange(100) % 2.0


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        (RIGHT, HALF, Outcome.PASS),
        (HALF, HALF, Outcome.PASS),
        (HALF, RIGHT, Outcome.FAIL),
        (np.r_[HALF[:95], 1 - HALF[95:]], HALF, Outcome.INCONCLUSIVE),
    ],
)
def test_no_worse_than_the_champion_on_the_same_prompts(ours: Any, theirs: Any, outcome: Outcome) -> None:
    verdict = judged(policy({"kind": "exact_match", "margin": 0.02}), ours, theirs)
    assert verdict.outcome is outcome
    finding = next(one for one in verdict.findings if one.metric == "exact_match")
    assert finding.low is not None
    assert finding.high is not None
    assert finding.low <= np.mean(ours) - np.mean(theirs) <= finding.high


def test_for_latency_less_is_better() -> None:
    rule = policy({"kind": "latency_ms", "margin": 5})
    fast, slow = np.full(50, 20.0), np.full(50, 40.0)
    assert judged(rule, fast, slow).passed
    assert judged(rule, slow, fast).failed


def test_thresholds_hold_for_a_first_version_too() -> None:
    rule = policy({"kind": "exact_match", "min": 0.9, "margin": 0.0})
    assert judged(rule, RIGHT).passed
    assert judged(rule, HALF).failed


def test_a_scorer_that_raised_on_one_answer_is_an_error_not_a_mean_of_the_rest() -> None:
    ours = RIGHT.copy()
    ours[3] = np.nan
    verdict = judged(
        policy({"kind": "exact_match", "min": 0.5}), ours, why_unmeasured={"exact_match": "boom"}
    )
    assert verdict.outcome is Outcome.ERROR
    assert "1 of 100" in verdict.reason
    assert "boom" in verdict.reason


def test_a_metric_that_is_absent_is_an_error() -> None:
    rule = policy({"kind": "exact_match", "min": 0.5})
    empty = Measures({}, np.zeros((100, 1), bool))
    assert evaluate_generation(rule, Contest(empty, None, "d")).outcome is Outcome.ERROR


def test_a_scorer_broken_on_the_champion_alone_is_an_error() -> None:
    theirs = RIGHT.copy()
    theirs[0] = np.nan
    verdict = judged(policy({"kind": "exact_match", "margin": 0.5}), RIGHT, theirs)
    assert verdict.outcome is Outcome.ERROR


def test_answers_that_never_came_fail() -> None:
    failed = np.zeros((100, 1), bool)
    failed[:2] = True
    ours = measures(np.where(failed[:, 0], 0.0, 1.0), failed=failed)
    rule = policy({"kind": "exact_match", "min": 0.5})
    assert evaluate_generation(rule, Contest(ours, None, "d")).failed
    tolerant = policy({"kind": "exact_match", "min": 0.5}, max_failed=0.05)
    assert evaluate_generation(tolerant, Contest(ours, None, "d")).passed


def test_few_prompts_are_inconclusive() -> None:
    assert judged(policy({"kind": "exact_match", "min": 0.5}), RIGHT[:9]).outcome is Outcome.INCONCLUSIVE


def test_repeated_samples_of_a_prompt_are_one_unit() -> None:
    """Sixteen answers to a prompt that agree inform like one: the interval must not shrink by four."""
    rng = np.random.default_rng(1)
    ours, theirs = rng.integers(0, 2, 60).astype(float), rng.integers(0, 2, 60).astype(float)
    rule = policy({"kind": "exact_match", "margin": 0.0}, samples=16, temperature=1)
    once = judged(rule, ours, theirs)
    often = judged(rule, np.tile(ours[:, None], 16), np.tile(theirs[:, None], 16))
    widths = [
        one.high - one.low
        for verdict in (once, often)
        for one in verdict.findings
        if one.metric == "exact_match" and one.high is not None and one.low is not None
    ]
    assert widths[0] == pytest.approx(widths[1])


def test_a_slice_that_regresses_fails_though_the_whole_is_better() -> None:
    rule = policy(
        {"kind": "exact_match", "margin": 0.05},
        slices=[{"column": "topic", "metric": "exact_match", "margin": 0.05}],
    )
    ours, theirs = np.r_[np.ones(160), np.zeros(40)], np.r_[np.zeros(160), np.ones(40)]
    topics = ("refund",) * 160 + ("battery",) * 40
    verdict = judged(rule, ours, theirs, slices={"topic": topics})
    assert verdict.failed
    assert "battery" in verdict.reason


def test_a_slice_of_an_unknown_column_is_an_error() -> None:
    rule = policy(
        {"kind": "exact_match", "margin": 0.05},
        slices=[{"column": "topic", "metric": "exact_match", "margin": 0.05}],
    )
    assert judged(rule, RIGHT, RIGHT).outcome is Outcome.ERROR


def test_kappa_of_known_tables() -> None:
    """Cohen's own kind of table: 20 and 15 agreed, 5 and 10 not: (0.7 - 0.5) / 0.5 = 0.4."""
    ours = np.r_[np.ones(20), np.ones(5), np.zeros(10), np.zeros(15)].astype(int)
    theirs = np.r_[np.ones(20), np.zeros(5), np.ones(10), np.zeros(15)].astype(int)
    found = agreement(ours, theirs, confidence=0.95)
    assert found.kappa == pytest.approx(0.4)
    assert found.low < 0.4 < found.high
    assert found.share == 0.7


def test_a_judge_that_always_says_yes_agrees_with_nobody() -> None:
    labels = np.r_[np.ones(90), np.zeros(10)].astype(int)
    found = agreement(np.ones(100, int), labels, confidence=0.95)
    assert found.kappa == 0
    assert found.share == 0.9


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (TRUSTED, Outcome.PASS),
        (Agreement(0.65, 0.5, 0.8, 0.8, 200), Outcome.INCONCLUSIVE),
        (Agreement(0.9, 0.8, 1.0, 0.9, 20), Outcome.INCONCLUSIVE),
        (None, Outcome.ERROR),
    ],
)
def test_a_judge_gates_only_once_it_agrees_with_people(found: Agreement | None, outcome: Outcome) -> None:
    rule = policy({"kind": "judge", "min": 0.5}, judge=JUDGE)
    assert judged(rule, RIGHT, agreement=found).outcome is outcome


def test_an_untrusted_judge_rejects_nothing_either() -> None:
    rule = policy({"kind": "judge", "min": 0.5}, judge=JUDGE)
    assert judged(rule, WRONG, agreement=TRUSTED).failed
    assert judged(rule, WRONG, agreement=DOUBTFUL, pair_agreement=TRUSTED).outcome is Outcome.INCONCLUSIVE


def pairwise(preferences: list[Preference], agreed: Agreement | None = TRUSTED) -> Verdict:
    rule = policy({"kind": "pairwise", "margin": 0.1}, judge=JUDGE)
    shape = Measures({}, np.zeros((100, 1), bool))
    contest = Contest(
        shape, shape, "d", DOUBTFUL, tuple(preferences), pair_agreement=agreed, why_unmeasured=TROUBLE
    )
    return evaluate_generation(rule, contest)


def test_pairwise_wins_with_both_orders() -> None:
    assert pairwise([Preference(1, 1)] * 100).passed
    assert pairwise([Preference(0.5, 0.5)] * 100).passed
    assert pairwise([Preference(0, 0)] * 100).failed


def test_pairs_are_gated_by_the_agreement_on_pairs() -> None:
    """That the judge knows a right answer from a wrong one does not say that it knows the better of two."""
    better, worse = [Preference(1, 1)] * 100, [Preference(0, 0)] * 100
    for preferences in (better, worse):
        verdict = pairwise(preferences, DOUBTFUL)
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "60% of 200 labelled pairs" in verdict.reason
    verdict = pairwise(better, None)
    assert verdict.outcome is Outcome.ERROR
    assert verdict.reason.endswith("labelled pairs: 503: not now")


def test_agreement_on_pairs_is_noted_for_the_shadow_where_no_scorer_needs_it() -> None:
    rule = policy({"kind": "exact_match", "min": 0.5}, judge=JUDGE)
    verdict = judged(rule, RIGHT, agreement=DOUBTFUL, pair_agreement=TRUSTED)
    assert verdict.passed
    noted = {one.metric: one.outcome for one in verdict.findings}
    assert noted["judge agreement on pairs"] is Outcome.PASS
    assert noted["judge agreement"] is Outcome.INCONCLUSIVE


def test_a_judge_that_follows_the_order_decides_nothing() -> None:
    """It prefers whatever stands first: each version wins half, which says nothing about either."""
    verdict = pairwise([Preference(1, 0)] * 100)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "followed the order in 100%" in verdict.reason
    assert order_bias([Preference(1, 0)] * 4) == (1.0, 1.0)
    assert order_bias([Preference(0, 1), Preference(1, 1)]) == (0.5, -0.5)


def test_pairs_that_were_not_judged_are_an_error() -> None:
    assert pairwise([Preference(1, 1)] * 99).outcome is Outcome.ERROR


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scorers": [{"kind": "judge", "min": 0.5}]}, "need the section `judge`"),
        ({"scorers": [{"kind": "similarity", "min": 0.5}]}, "lexical_similarity"),
        ({"scorers": [{"kind": "pii"}]}, "decides nothing"),
        ({"scorers": [{"kind": "pii", "min": 1}, {"kind": "pii", "min": 1}]}, "same name"),
        ({"samples": 3}, "temperature above 0"),
        ({"api": "completions", "tokens_field": "max_completion_tokens"}, "max_tokens"),
        ({"scorers": [{"kind": "judge", "min": 0.5}], "judge": UNLABELLED}, "needs judge.labelled:"),
        (
            {"scorers": [{"kind": "pairwise", "margin": 0.1}], "judge": UNLABELLED},
            "needs judge.labelled_pairs",
        ),
    ],
)
def test_a_policy_that_cannot_work_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        policy(*change.pop("scorers", [{"kind": "pii", "min": 1}]), **change)
