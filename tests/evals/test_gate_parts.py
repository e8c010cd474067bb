"""Parts of the gate without a whole evaluation: score intervals, rankings, groups, slices, cost, guards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.evaluation import Cost, Evaluation, Freshness, Leakage, Live, Metric, Slice
from configs.section import LatencyBudget
from evals.budgets import calls_wanted, champion_is_timed, judge_cost, judge_latency
from evals.contest import Contest
from evals.gate import Scores, evaluate
from evals.guards import judge_age, judge_leakage, judge_live, judge_signature, newest_time
from evals.intervals import Draws, PairedShares, generator, moment_draws, resampled_draws
from evals.labels import judge_labels, labelled, note_missing
from evals.metrics import MetricError, Predictions, is_known, measure
from evals.moments import clustered, moments
from evals.slices import group_rows
from evals.verdict import Finding, Outcome, Verdict

ROWS = 2000


def policy(*metrics: str, task: str = "classification", **options: Any) -> Evaluation:
    asked = tuple(Metric(name=name, margin=0.02) for name in metrics)
    return Evaluation(data="d", label="y", task=task, metrics=asked, **options)


def outcome_of(verdict: Verdict, metric: str) -> Outcome:
    return next(one.outcome for one in verdict.findings if one.metric == metric)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 3000), st.floats(0.5, 0.999))
@settings(max_examples=60, deadline=None)
def test_the_score_interval_holds_its_estimate_and_grows_with_confidence(
    gained: int, lost: int, same: int, confidence: float
) -> None:
    n = gained + lost + same + 1
    found = PairedShares(gained, lost, n).interval(confidence)
    wider = PairedShares(gained, lost, n).interval(confidence + (1 - confidence) / 2)
    mirrored = PairedShares(lost, gained, n).interval(confidence)
    assert -1 <= found.low <= (gained - lost) / n <= found.high <= 1
    assert wider.low <= found.low + 1e-7
    assert wider.high >= found.high - 1e-7
    assert mirrored.low == pytest.approx(-found.high, abs=1e-6)


def test_the_score_interval_at_its_ends_and_without_a_pair_that_differs() -> None:
    alike = PairedShares(0, 0, 200).interval(0.95)
    assert alike.high == pytest.approx(1.96**2 / (200 + 1.96**2), rel=0.01)
    assert PairedShares(50, 0, 50).interval(0.95).high == 1.0
    assert PairedShares(0, 50, 50).interval(0.95).low == -1.0


def test_the_score_interval_covers_where_resamples_would_not() -> None:
    """2% of pairs differ: the interval of 200 rows covers at least its confidence, nearly."""
    rng = np.random.default_rng(11)
    inside = 0
    for _ in range(400):
        kinds = rng.choice(3, size=200, p=[0.98, 0.005, 0.015])
        found = PairedShares(int(np.sum(kinds == 1)), int(np.sum(kinds == 2)), 200).interval(0.95)
        inside += found.low <= -0.01 <= found.high
    assert inside >= 370


def test_thin_tails_are_the_normal_distributions() -> None:
    draws = Draws(np.random.default_rng(0).normal(size=2000))
    assert draws.interval(0.95).high == pytest.approx(1.96, abs=0.15)
    assert draws.interval(0.9999).high == pytest.approx(3.89, abs=0.2)


@pytest.mark.parametrize("cut", ["ndcg", "ndcg@3"])
def test_rankings_are_scikit_learns_query_by_query(cut: str) -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 120, 700)
    labels = rng.integers(0, 4, 700).astype(float)
    values = np.round(labels + rng.normal(size=700), 0)  # ties
    said = Predictions(values=values)
    value = measure(cut, labels, said, np.unique(labels), groups)
    found = moments(cut, labels, said, np.unique(labels), groups)
    assert found is not None
    assert float(found.of(found.rows.mean(axis=0))) == pytest.approx(value, rel=1e-9)
    asked = policy(cut, task="ranking", group="q", min_rows=100)
    worse = Predictions(values=-values)
    assert evaluate(asked, Scores(labels, said, worse, groups=groups)).outcome is Outcome.PASS
    assert evaluate(asked, Scores(labels, worse, said, groups=groups)).outcome is Outcome.FAIL


def test_rankings_need_queries_of_two_rows() -> None:
    labels, said = np.ones(5), Predictions(values=np.ones(5))
    for groups, words in ((None, "evaluation.group"), (np.arange(5), "two rows or more")):
        with pytest.raises(MetricError, match=words):
            measure("ndcg", labels, said, np.unique(labels), groups)
    with pytest.raises(ValueError, match=r"evaluation\.group"):
        policy("ndcg", task="ranking")
    assert is_known("ndcg@5")
    assert not is_known("ndcg@0")


def test_rows_of_one_group_are_resampled_together() -> None:
    """Fifty copies of each row say no more than one: the interval must not shrink by sqrt(50)."""
    rng = np.random.default_rng(1)
    truth, error = rng.normal(size=200), rng.normal(size=200)
    labels, ours, theirs = (np.repeat(one, 50) for one in (truth, truth + error, truth + 0.9))
    groups = np.repeat(np.arange(200), 50)
    widths = []
    for codes in (None, groups):
        sides = [moments("mae", labels, Predictions(values=one), labels) for one in (ours, theirs)]
        if codes is not None:
            sides = [clustered(side, codes) for side in sides if side is not None]
        interval = moment_draws(sides[0], sides[1], rng=generator("d")).interval(0.95)
        widths.append(interval.high - interval.low)
    assert widths[1] > 5 * widths[0]
    assert evaluate(
        policy("mae", task="regression", group="g"),
        Scores(labels, Predictions(values=ours), Predictions(values=ours + 0.5), groups=groups),
    ).findings


def test_custom_metrics_are_resampled_by_groups() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=100), 20)
    groups = np.repeat(np.arange(100), 20)

    def mean(rows: Any) -> float:
        return float(values[rows].mean())

    single = resampled_draws(mean, 2000, rng=generator("d")).interval(0.95)
    whole = resampled_draws(mean, 2000, rng=generator("d"), groups=groups).interval(0.95)
    assert whole.high - whole.low > 2.5 * (single.high - single.low)


def test_many_classes_have_moments_for_every_metric() -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(["a", "b", "c"], ROWS)
    classes = np.unique(labels)
    matrix = rng.random((ROWS, 3)) + (labels[:, None] == classes)
    said = Predictions(probability=matrix / matrix.sum(axis=1, keepdims=True))
    for name in ("accuracy", "f1", "roc_auc", "log_loss", "brier", "calibration_error"):
        found = moments(name, labels, said, classes)
        assert found is not None
        assert float(found.of(found.rows.mean(axis=0))) == pytest.approx(
            measure(name, labels, said, classes), rel=1e-9
        )
    assert moments("roc_auc", labels[labels == "a"], said.take(labels == "a"), classes) is None


def test_slices_by_bins_and_by_what_is_missing() -> None:
    frame = pd.DataFrame({"hour": [1.0, 6.0, 7.0, 18.0, np.nan], "name": list("abcde")})
    found = {name: rows.tolist() for name, rows in group_rows(frame, "hour", (6, 18)).items()}
    assert found == {"under 6": [0], "6 to under 18": [1, 2], "18 or more": [3], "missing": [4]}
    with pytest.raises(ValueError, match="not numbers"):
        group_rows(frame, "name", (1, 2))
    with pytest.raises(ValueError, match="must rise"):
        Slice(column="hour", bins=(2, 1), metric="f1", margin=0)


def sided(worse_by: float, slices: int) -> Verdict:
    """The candidate is a little worse in one slice of many."""
    rng = np.random.default_rng(4)
    truth = rng.normal(size=ROWS * 5)
    part = rng.integers(0, slices, truth.size)
    theirs = truth + rng.normal(size=truth.size)
    ours = truth + rng.normal(size=truth.size) * np.where(part == 0, 1 + worse_by, 1)
    asked = policy(
        "mae",
        task="regression",
        slices=(Slice(column="part", metric="mae", margin=0.05, min_rows=20),),
    )
    frame = pd.DataFrame({"part": [f"p{value:03d}" for value in part]})
    return evaluate(asked, Scores(truth, Predictions(values=ours), Predictions(values=theirs), frame))


def test_a_fail_is_judged_at_the_confidence_that_all_comparisons_share() -> None:
    assert sided(1.0, 4).outcome is Outcome.FAIL
    worse = [sided(by, 40) for by in (0.05, 0.1, 0.15, 0.2)]
    found = [one for verdict in worse for one in verdict.findings if one.metric.endswith("p000")]
    shared = [one for one in found if "41 comparisons share" in one.reason]
    assert shared
    assert all(one.outcome is Outcome.INCONCLUSIVE and one.low > 0.05 for one in shared)
    assert not any(one.outcome is Outcome.FAIL for one in sided(0.0, 60).findings)


def test_slices_that_cannot_be_cut_are_errors_even_for_a_first_champion() -> None:
    truth = np.arange(float(ROWS))
    said = Predictions(values=truth)
    frame = pd.DataFrame({"name": ["x"] * ROWS})
    for bad, words in (
        (Slice(column="no", metric="mae", margin=0), "no such column"),
        (Slice(column="name", metric="f1", margin=0), "not among evaluation.metrics"),
        (Slice(column="name", bins=(1,), metric="mae", margin=0), "not numbers"),
    ):
        asked = policy("mae", task="regression", slices=(bad,))
        verdict = evaluate(asked, Scores(truth, said, None, frame))
        assert verdict.outcome is Outcome.ERROR
        assert words in verdict.reason
    nowhere = policy("mae", task="regression", slices=(Slice(column="no", metric="mae", margin=0),))
    assert "they have none" in evaluate(nowhere, Scores(truth, said)).reason


def test_latency_over_its_budget_fails_only_where_that_is_proven() -> None:
    asked = policy("mae", task="regression", latency_ms=LatencyBudget(p95=10))
    quick, few = np.full(100, 5.0), np.r_[np.full(93, 5.0), np.full(7, 20.0)]
    many = np.r_[np.full(70, 5.0), np.full(30, 20.0)]
    outcomes = [next(judge_latency(asked, calls, ())).outcome for calls in (quick, few, many)]
    assert outcomes == [Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL]
    assert calls_wanted(asked) == 100
    assert calls_wanted(policy("mae", task="regression")) == 0


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ({"per_call_usd": 0.01, "max_usd": 0.02}, [Outcome.PASS]),
        ({"per_call_usd": 0.03, "max_usd": 0.02}, [Outcome.FAIL]),
        ({"per_hour_usd": 3.6, "calls_per_s": 10, "max_usd": 0.0001}, [Outcome.PASS]),
        ({"per_hour_usd": 3.6, "max_usd": 0.00001}, [Outcome.PASS]),
        ({"per_hour_usd": 3.6, "margin": 0.5}, [Outcome.FAIL]),
        ({"per_hour_usd": 3.6, "margin": 1.5, "max_usd": 1}, [Outcome.PASS, Outcome.PASS]),
    ],
)
def test_cost_of_a_call(cost: dict[str, float], expected: list[Outcome]) -> None:
    asked = policy("mae", task="regression", cost=Cost(**cost))
    calls = np.full(20, 10.0)  # $3.6 an hour is $0.00001 for 10 ms
    found = list(judge_cost(asked, calls, calls / 2))
    assert [one.outcome for one in found] == expected
    assert champion_is_timed(asked) == ("margin" in cost and "per_hour_usd" in cost)


def test_cost_that_nobody_measured_and_policies_without_a_price() -> None:
    asked = policy("mae", task="regression", cost=Cost(per_hour_usd=1, margin=0.1, max_usd=1))
    assert [one.outcome for one in judge_cost(asked, (), ())] == [Outcome.ERROR]
    assert [one.metric for one in judge_cost(asked, np.ones(20), ())] == ["cost per call"]
    assert calls_wanted(asked) == 20
    for wrong in ({}, {"per_call_usd": 1, "per_hour_usd": 1, "max_usd": 1}, {"per_call_usd": 1}):
        with pytest.raises(ValueError, match=r"evaluation\.cost needs"):
            Cost(**wrong)


def hashes(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_leakage_is_what_repetitions_do_not_explain() -> None:
    numbers = np.arange(1000)
    held_out = np.arange(1000).astype(np.uint64)
    apart = judge_leakage(Leakage(), "2", held_out, hashes(2000, 2001), numbers)
    assert apart.outcome is Outcome.PASS
    one = judge_leakage(Leakage(), "2", held_out, hashes(7, 2001), numbers)
    assert one.outcome is Outcome.FAIL
    assert "1 of 1000" in one.reason
    assert "rows 7 (counted" in one.reason
    many = judge_leakage(Leakage(), "2", held_out, held_out, numbers, is_champion=True)
    assert (many.outcome, many.blocks) == (Outcome.INCONCLUSIVE, False)
    assert "0, 1, 2, 3, 4, ..." in many.reason
    rng = np.random.default_rng(0)
    coarse, other = (rng.integers(0, 50, 1000).astype(np.uint64) for _ in range(2))
    natural = judge_leakage(Leakage(), "2", coarse, other, numbers)
    assert natural.outcome is Outcome.PASS
    assert "own repetitions" in natural.reason
    assert judge_leakage(Leakage(), "2", hashes(), hashes(1), numbers[:0]).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("values", "newest"),
    [
        ([1.0, 5.0, np.nan], 5.0),
        ([1_700_000_000_000], 1_700_000_000.0),
        (pd.to_datetime(["2026-01-01", "2026-01-02"]), 1_767_312_000.0),
        (["2026-01-02", "no time"], 1_767_312_000.0),
        (["a", "b"], None),
        ([True, False], None),
        ([np.nan], None),
    ],
)
def test_the_newest_moment_of_a_column(values: Any, newest: float | None) -> None:
    assert newest_time(pd.Series(values)) == newest


@pytest.mark.parametrize(
    ("newest", "outcome", "words"),
    [
        (9_000.0, Outcome.PASS, "17 min old"),
        (1.0, Outcome.INCONCLUSIVE, "hold out newer rows"),
        (None, Outcome.ERROR, "holds no time"),
        (500_000.0, Outcome.ERROR, "6 days in the future"),
    ],
)
def test_age(newest: float | None, outcome: Outcome, words: str) -> None:
    found = judge_age(Freshness(max_age_s=8_000), newest, 10_000.0)
    assert found.outcome is outcome
    assert words in found.reason


def test_signatures() -> None:
    assert judge_signature("", allowed=False).outcome is Outcome.PASS
    assert judge_signature("it needs x", allowed=False).outcome is Outcome.FAIL
    for quiet in (judge_signature("it needs x", allowed=True), judge_signature(None, allowed=False)):
        assert (quiet.outcome, quiet.blocks) == (Outcome.INCONCLUSIVE, False)


def test_live_traffic_is_compared_and_never_blocks() -> None:
    rng = np.random.default_rng(0)
    asked = Live(min_rows=100)
    plain = rng.normal(size=2000).tolist()
    cases = [
        (plain, rng.normal(size=600).tolist(), Outcome.PASS),
        (plain, rng.normal(1, 1, 600).tolist(), Outcome.INCONCLUSIVE),
        ([0, 1] * 500, ["0", "1"] * 300, Outcome.PASS),
        (["a", "b"] * 500, ["a", "a", "b"] * 200, Outcome.INCONCLUSIVE),
        ([1.0, 2.0, 3.0] * 300, ["x"] * 300, Outcome.INCONCLUSIVE),
        ([1.0, 2.0, np.inf] * 300, [1.0] * 99, Outcome.INCONCLUSIVE),
        ([1.0, 2.0, np.nan] * 300, [1.0, 2.0, float("nan")] * 99, Outcome.PASS),
    ]
    for held_out, live, outcome in cases:
        found = judge_live(asked, "labels", held_out, live)
        assert found.outcome is outcome, found.reason
        assert not found.blocks


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("classification", [], "has no rows"),
        ("classification", [None, None], "wait for labels"),
        ("classification", ["a", "a"], "one class"),
        ("classification", ["a", 1], "mixes int and str"),
        ("classification", [0.1, 0.7], "no set of classes"),
        ("classification", list(range(1500)), "1500 different values"),
        ("regression", ["high", "low"], "a regression needs numbers"),
        ("regression", [1.0, np.inf], "1 labels in 'y' are infinite"),
        ("ranking", [-1.0, 2.0], "relevance"),
        ("ranking", [0.0, 0.0], "relevance"),
    ],
)
def test_labels_that_answer_nothing(task: str, labels: list[Any], words: str) -> None:
    asked = policy("mae", task=task, group="g")
    found = judge_labels(asked, np.array(labels, dtype=object if "a" in labels else None))
    assert found is not None
    assert found.outcome is Outcome.ERROR
    assert words in found.reason
    assert "Next: " in found.reason


@given(st.lists(st.one_of(st.none(), st.floats(), st.integers(-5, 5), st.text(max_size=3), st.booleans())))
@settings(max_examples=150, deadline=None)
def test_any_labels_get_a_finding_or_can_be_used(labels: list[Any]) -> None:
    given_labels = np.empty(len(labels), dtype=object)
    given_labels[:] = labels
    for task in ("classification", "regression", "ranking"):
        asked = policy("mae", task=task, group="g")
        found = judge_labels(asked, given_labels)
        known = given_labels[labelled(given_labels)]
        if found is None:
            assert known.size >= 1
            note = note_missing(asked, given_labels)
            assert (note is None) == (known.size == given_labels.size)
        else:
            assert "Next: " in found.reason


def test_numbers_as_text_are_numbers_for_a_regression() -> None:
    assert judge_labels(policy("mae", task="regression"), np.array(["1.5", "2"], dtype=object)) is None


def test_findings_from_elsewhere_share_in_the_verdict_but_never_pass_alone() -> None:
    truth = np.arange(float(ROWS))
    said = Predictions(values=truth)
    guard = Finding("guard", Outcome.PASS, "fine")
    alone = evaluate(policy("mae", task="regression"), Scores(truth, said), [guard])
    assert alone.outcome is Outcome.INCONCLUSIVE
    assert "no absolute threshold" in alone.reason
    both = Scores(truth, said, said)
    assert evaluate(policy("mae", task="regression"), both, [guard]).outcome is Outcome.PASS
    broken = Finding("guard", Outcome.FAIL, "leak")
    assert evaluate(policy("mae", task="regression"), both, [broken]).outcome is Outcome.FAIL
    noted = Finding("guard", Outcome.FAIL, "leak", blocks=False)
    assert evaluate(policy("mae", task="regression"), both, [noted]).outcome is Outcome.PASS


def test_a_metric_is_named_once() -> None:
    with pytest.raises(ValueError, match="more than once"):
        policy("mae", "mae", task="regression")


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 2.0))
@settings(max_examples=15, deadline=None)
def test_a_wider_margin_never_makes_it_worse(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=1000)
    scores = Scores(
        truth,
        Predictions(values=truth + noise * rng.normal(size=1000)),
        Predictions(values=truth + rng.normal(size=1000)),
        digest="d",
    )
    rank = {Outcome.FAIL: 0, Outcome.INCONCLUSIVE: 1, Outcome.PASS: 2}
    seen = [
        rank[
            evaluate(
                Evaluation(
                    data="d", label="y", task="regression", metrics=(Metric(name="mae", margin=margin),)
                ),
                scores,
            ).outcome
        ]
        for margin in (0.0, 0.05, 0.2, 1.0, 5.0)
    ]
    assert seen == sorted(seen)


def test_an_area_among_rows_of_one_class_is_undefined_and_not_a_difference() -> None:
    labels = np.array([0, 1] * 50)
    said = Predictions.read(np.linspace(0.1, 0.9, 100), labels, "classification")
    scores = Scores(labels, said, said)
    late = np.flatnonzero(labels == 1)
    contest = Contest("roc_auc", scores, late)
    assert contest.champion is not None
    with pytest.raises(MetricError, match="every class is needed"):
        contest.difference(contest.champion, purpose="slice")
