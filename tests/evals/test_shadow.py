"""The shadow's judge, and the comparison of answers that feeds it."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.policy import Latency, Shadow
from evals.compare import compare_bodies, compare_predictions
from evals.looks import LatencyThresholds
from evals.shadow import PairCounts, ShadowJudge, count_slower
from evals.verdict import Outcome, Verdict

POLICY = Shadow(score_tolerance=0.05, min_pairs=400, max_disagreement=0.2)


def judge(policy: Shadow = POLICY, margin: float = 0.01) -> ShadowJudge:
    return ShadowJudge(policy, margin, Latency(tolerance=0.1))


def run(the_judge: ShadowJudge, counts: PairCounts, looks: int) -> Verdict:
    for _ in range(looks):
        verdict = the_judge.look(counts)
    return verdict


def test_good_pairs_pass_after_the_minimum_with_positive_evidence() -> None:
    the_judge = judge()
    good = PairCounts(both_fine=49, both_bad=1, disagreeing=4, timed=20, slower={"p50": (2, 2)})
    early = run(the_judge, good, 7)
    assert early.outcome is Outcome.INCONCLUSIVE
    assert early.reason.startswith("350 of at least 400 pairs")
    assert early.eta_units >= 50
    late = run(the_judge, good, 2)
    assert late.outcome is Outcome.PASS
    assert {finding.metric for finding in late.findings} == {"errors", "disagreement"}
    json.dumps(the_judge.numbers, allow_nan=False)


def test_enough_pairs_alone_do_not_pass() -> None:
    """Disagreement just at its budget: no alarm, but no proof either."""
    verdict = run(judge(), PairCounts(both_fine=50, disagreeing=10), 20)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "disagreement" in verdict.reason
    assert "pairs;" not in verdict.reason
    assert verdict.eta_units is None


def test_no_pairs_are_inconclusive() -> None:
    verdict = run(judge(), PairCounts(), 5)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.eta_units >= 300


@pytest.mark.parametrize(
    ("counts", "metric"),
    [
        (PairCounts(both_fine=46, candidate_bad=4), "errors"),
        (PairCounts(both_fine=50, disagreeing=25), "disagreement"),
        (PairCounts(both_fine=50, timed=20, slower={"p50": (9, 0), "p90": (4, 0)}), "latency"),
    ],
)
def test_harm_fails_and_stays_failed(counts: PairCounts, metric: str) -> None:
    the_judge = judge()
    verdict = run(the_judge, counts, 12)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.findings[0].metric == metric
    assert verdict.reason.startswith(metric)
    assert run(the_judge, PairCounts(both_fine=1000), 20) == verdict
    assert the_judge.total.both_fine > 20_000


def test_errors_that_both_make_are_not_the_candidates() -> None:
    verdict = run(judge(), PairCounts(both_fine=25, both_bad=25), 30)
    assert verdict.outcome is Outcome.PASS


def test_false_alarms_are_rare() -> None:
    rng = np.random.default_rng(1)
    policy = Shadow(score_tolerance=0.05, max_disagreement=0.2)
    failed = 0
    for _ in range(150):
        the_judge = judge(policy)
        for _ in range(20):
            fine = int(rng.binomial(50, 0.9))
            odd = int(rng.binomial(50 - fine, 0.5))
            slow = rng.binomial(8, 0.5)
            counts = PairCounts(
                fine, odd, 50 - fine - odd, 0, int(rng.binomial(fine, 0.2)), 20, {"p50": (slow, 8 - slow)}
            )
            verdict = the_judge.look(counts)
        failed += verdict.outcome is Outcome.FAIL
    assert failed <= 1.5 + 3 * math.sqrt(1.5)


def test_latency_quantiles_are_fixed_by_the_first_look_that_has_any() -> None:
    the_judge = judge()
    the_judge.look(PairCounts(both_fine=1, timed=1, slower={"p50": (0, 1)}))
    with pytest.raises(ValueError, match="p99"):
        the_judge.look(PairCounts(both_fine=1, timed=1, slower={"p99": (0, 1)}))


def test_counts_add_up_and_survive_json() -> None:
    first = PairCounts(1, 2, 3, 4, 1, 5, {"p50": (1, 2)})
    second = PairCounts(10, 0, 0, 0, 2, 1, {"p90": (3, 4)}, 6)
    total = first + second
    assert total == PairCounts(11, 2, 3, 4, 3, 6, {"p50": (1, 2), "p90": (3, 4)}, 6)
    assert (total.pairs, total.compared) == (20, 5)
    assert PairCounts.from_dict(json.loads(json.dumps(total.as_dict()))) == total
    of_before = {name: value for name, value in total.as_dict().items() if name != "uncompared"}
    assert PairCounts.from_dict(of_before).uncompared == 0


def test_pairs_that_were_not_compared_are_no_evidence_on_outputs() -> None:
    verdict = run(judge(), PairCounts(both_fine=50, uncompared=50), 100)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "0 of at least 400 pairs (5000 more were not compared)" in verdict.reason
    sampled = PairCounts(both_fine=50, disagreeing=1, uncompared=40)
    the_judge = judge()
    undecided = run(the_judge, sampled, 39)
    assert undecided.reason.startswith("390 of at least 400 pairs")
    assert undecided.eta_units == 50
    assert the_judge.look(sampled).outcome is Outcome.PASS
    worse = PairCounts(both_fine=50, disagreeing=8, uncompared=40)
    verdict = run(judge(), worse, 10)
    assert verdict.outcome is Outcome.FAIL
    found = re.search(r"outputs differ on (\d+) of (\d+) pairs", verdict.reason)
    assert found is not None
    assert int(found[1]) / int(found[2]) == 0.8, "of the pairs that were compared"


def test_slower_pairs_give_the_candidate_its_tolerance() -> None:
    thresholds = LatencyThresholds({"p50": 10.0})
    found = count_slower([10.5, 12.0, 12.0, 1.0], [9.0, 9.0, 11.0, 11.0], thresholds, tolerance=0.1)
    assert found == {"p50": (1, 1)}


# Comparing answers --------------------------------------------------------------------------------

SAME = [
    ({"predictions": [0.1, 0.2]}, {"predictions": [0.12, 0.18], "other": 1}),
    ([{"label": "late", "score": 0.7}], [{"label": "late", "score": 0.72}]),
    ({"predictions": [[1, 2], [3, None]]}, {"predictions": [[1, 2.05], [3, None]]}),
    (True, True),
    ("late", "late"),
    ([math.nan], [math.nan]),
    ([math.inf], [math.inf]),
]
DIFFERENT = [
    ({"predictions": [0.1]}, {"predictions": [0.3]}, r"predictions\[0\]: 0.1 against 0.3, tolerance 0.05"),
    ({"predictions": [0.1]}, {"predictions": [0.1, 0.1]}, "1 entries against 2"),
    (
        [{"label": "late", "score": 0.7}],
        [{"label": "early", "score": 0.7}],
        r"\[0\].label: 'late' against 'early'",
    ),
    ({"predictions": {"a": 1}}, {"predictions": {"b": 1}}, "only one version has a, b"),
    ([1], ["1"], "1 against '1'"),
    ([1], [True], "1 against True"),
    ([0], [None], "0 against None"),
    ([math.nan], [0.0], "nan against 0"),
    ([math.inf], [-math.inf], "inf against -inf"),
    ([10**400], [0], "against"),
    ("x" * 100, "y" * 100, r"\.\.\. against"),
    ([0.1, "a", "b"], [0.3, "c", "d"], r"predictions\[0\]"),
]


@pytest.mark.parametrize(("ours", "theirs"), SAME)
def test_the_same_answers_agree(ours: object, theirs: object) -> None:
    assert compare_predictions(ours, theirs, score_tolerance=0.05).agree
    assert compare_predictions(theirs, ours, score_tolerance=0.05).agree


@pytest.mark.parametrize(("ours", "theirs", "reason"), DIFFERENT)
def test_different_answers_say_where(ours: object, theirs: object, reason: str) -> None:
    found = compare_predictions(ours, theirs, score_tolerance=0.05)
    assert not found.agree
    assert re.search(reason, found.reason)
    assert not compare_predictions(theirs, ours, score_tolerance=0.05).agree


def test_bodies() -> None:
    assert compare_bodies(b"not json", b"not json", score_tolerance=0).agree
    assert "bytes differ" in compare_bodies(b"not json", b"[1]", score_tolerance=0).reason
    assert "bytes differ" in compare_bodies(b"[" * 100_000, b"[1]", score_tolerance=0).reason
    found = compare_bodies(b'{"predictions": [1.0, 2.0]}', b'{"predictions":[1.0,2.25]}', score_tolerance=0.3)
    assert (found.agree, found.largest) == (True, 0.25)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(ours=JSON, theirs=JSON, tolerance=st.floats(0, 10))
def test_any_json_compares_reflexively_and_symmetrically(
    ours: object, theirs: object, tolerance: float
) -> None:
    assert compare_predictions(ours, ours, score_tolerance=tolerance).agree
    forth = compare_predictions(ours, theirs, score_tolerance=tolerance)
    back = compare_predictions(theirs, ours, score_tolerance=tolerance)
    assert (forth.agree, forth.largest) == (back.agree, back.largest)
    assert forth.agree == (not forth.reason)
