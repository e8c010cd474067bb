"""A verdict says what would change it, and what it says comes true."""

from __future__ import annotations

import re

import pytest

from configs.measures import Quality
from configs.policy import Canary, Errors, Latency, LatencyBudget, Shadow
from evals.canary import CanaryJudge
from evals.contrast import Contrast
from evals.evidence import Question
from evals.explaining import of_rollback
from evals.looks import LatencyThresholds, LookStatistics
from evals.shadow import PairCounts, ShadowJudge, no_shadow, out_of_time
from evals.verdict import Outcome, Verdict

from .streams import group
from .test_canary import GOOD, POLICY, THRESHOLDS, judge, run


def test_an_open_canary_names_what_it_lacks_and_the_failures_that_would_end_it() -> None:
    the_judge = judge()
    verdict = run(the_judge, GOOD, looks=2, step=0, pi=0.05).verdict
    assert verdict.outcome is Outcome.INCONCLUSIVE
    change = verdict.would_change
    assert "to promote: " in change
    assert "of 20, about" in change
    assert "still at step 1 of 2" in change
    said = re.search(r"to 100, as after about (\d+) candidate units in a row that fail", change)
    assert said is not None
    needed = int(said.group(1))
    assert 2 <= needed <= 40

    def after(failures: int) -> Outcome:
        one = judge()
        run(one, GOOD, looks=2, step=0, pi=0.05)
        for _ in range(failures):
            bad = LookStatistics((group(0.05, {"errors": (0, 1)}, {}),), 1, 0)
            outcome = one.look(bad, step=0, seconds_at_step=1).verdict.outcome
        return outcome

    assert after(needed + 2) is Outcome.FAIL
    assert after(max(needed - 3, 1)) is Outcome.INCONCLUSIVE


def test_a_promotion_names_its_weakest_proof() -> None:
    verdict = run(judge(), GOOD).verdict
    assert verdict.outcome is Outcome.PASS
    weakest = min(verdict.findings, key=lambda finding: finding.evidence or 0.0)
    assert f"{weakest.evidence:.3g}" in verdict.would_change


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("errors", "errors at most 0.5 points above the champion's"),
        ("quality", "scores at most 0.1 below the champion's"),
        ("tolerance/p95", "latency p95 at most 30% above the champion's"),
        ("budget/p99", "at most 0.01 of its requests over the budget"),
    ],
)
def test_a_rollback_names_the_limit_that_was_passed(metric: str, words: str) -> None:
    policy = Canary(
        errors=Errors(tolerance=0.005),
        latency=Latency(tolerance=0.3, budget_ms=LatencyBudget(p99=100)),
        quality=Quality(tolerance=0.1),
    )
    contrast = Contrast(10, 0.2, 0.1, 0.0, 0.2, 0.1)
    told = of_rollback(policy, Question(metric, 9.0), contrast)
    assert words in told
    assert "(seen: +10 points)" in told
    assert "nothing that comes later" in told


def test_a_rejected_canary_says_so_with_requests_and_interval() -> None:
    verdict = run(judge(), GOOD | {"errors": 0.3}, step=0, pi=0.05).verdict
    assert verdict.outcome is Outcome.FAIL
    assert "errors at most 0 points above" in verdict.would_change
    assert re.search(r"after \d+ candidate units \(\d+ requests\)", verdict.reason)
    assert "against champion" in verdict.reason
    assert "passed 1/alpha = 100" in verdict.reason


def test_errors_of_the_telemetry_and_of_thresholds_name_the_way_out() -> None:
    the_judge = judge()
    for _ in range(40):
        lost = LookStatistics((group(0.5, {}, {"errors": (200, 0)}, entered=(0, 200)),), 0, 200)
        verdict = the_judge.look(lost, step=1, seconds_at_step=1).verdict
    assert verdict.outcome is Outcome.ERROR
    assert "a new release" in verdict.would_change
    missing = CanaryJudge(POLICY, LatencyThresholds({"p50": 10.0}))
    verdict = missing.look(LookStatistics(), step=0, seconds_at_step=1).verdict
    assert verdict.outcome is Outcome.ERROR
    assert "without p90" in verdict.would_change
    assert THRESHOLDS.missing(("p50", "p90")) == ()


def shadowed(*looks: PairCounts, policy: Shadow | None = None) -> Verdict:
    wanted = policy or Shadow(score_tolerance=0.05, min_pairs=100, max_disagreement=0.2)
    the_judge = ShadowJudge(wanted, 0.01, Latency(tolerance=0.1))
    for counts in looks:
        verdict = the_judge.look(counts)
    return verdict


def test_an_open_shadow_names_the_pairs_that_would_end_it() -> None:
    good = PairCounts(both_fine=40)
    verdict = shadowed(good)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "to pass: 40 of at least 100 pairs" in verdict.would_change
    said = re.search(r"as after (?:about )?(\d+) (?:more )?pairs that only it fails", verdict.would_change)
    assert said is not None
    assert shadowed(good, PairCounts(candidate_bad=int(said.group(1)))).outcome is Outcome.FAIL
    assert shadowed(good, PairCounts(candidate_bad=3)).outcome is Outcome.INCONCLUSIVE
    held = out_of_time(Shadow(score_tolerance=0.05, timeout_s=9), verdict)
    assert (held.outcome, held.would_change) == (Outcome.INCONCLUSIVE, verdict.would_change)
    assert held.reason.startswith("no decision within 9 s: ")


@pytest.mark.parametrize(
    ("counts", "metric", "words"),
    [
        (PairCounts(both_fine=20, candidate_bad=30), "errors", "only the champion failed"),
        (PairCounts(both_fine=90, disagreeing=80), "disagreement", "at most 20.0% of the outputs"),
        (
            PairCounts(both_fine=90, timed=60, slower={"p95": (50, 1)}),
            "latency",
            "within 10% of the champion's",
        ),
    ],
)
def test_a_rejected_shadow_has_both_rates_their_interval_and_the_limit(
    counts: PairCounts, metric: str, words: str
) -> None:
    verdict = shadowed(counts)
    assert verdict.outcome is Outcome.FAIL
    assert words in verdict.would_change
    finding = verdict.findings[0]
    assert (finding.metric, finding.outcome) == (metric, Outcome.FAIL)
    assert finding.evidence is not None
    if metric == "errors":
        assert finding.candidate is not None
        assert finding.champion is not None
        assert finding.candidate > finding.champion
    if metric != "disagreement":
        assert finding.low is not None
        assert finding.low > 0


def test_a_passed_shadow_names_its_weakest_proof_and_none_says_why() -> None:
    verdict = shadowed(PairCounts(both_fine=900, disagreeing=20))
    assert verdict.outcome is Outcome.PASS
    assert "the weakest is errors" in verdict.would_change
    off = no_shadow(Shadow(enabled=False, reason="batch endpoint"))
    assert (off.outcome, off.reason) == (Outcome.PASS, "no shadow, by the policy: batch endpoint")
    again = Verdict.from_dict({**verdict.as_dict(), "time": 1.0})
    assert again == verdict
