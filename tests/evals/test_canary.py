"""The canary's judge: what it decides, what it never decides, and how it says so."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from configs.policy import Canary, Errors, Latency, LatencyBudget
from evals.canary import CanaryJudge, Look, replay
from evals.contrast import Strata
from evals.looks import LatencyThresholds, LookStatistics, StoredLook
from evals.ramp import next_step
from evals.verdict import Outcome

from .streams import drawn_look, group

THRESHOLDS = LatencyThresholds({"p50": 10.0, "p90": 20.0})
POLICY = Canary(
    steps=(5, 50),
    bake_s=10,
    soak_s=20,
    min_units=50,
    errors=Errors(margin=0.05),
    latency=Latency(quantiles=("p50", "p90"), margin=0.5),
)
SAME = {"errors": 0.01, "tolerance/p50": 0.5, "tolerance/p90": 0.1, "margin/p50": 0.5, "margin/p90": 0.1}
GOOD = SAME | {"tolerance/p50": 0.4, "tolerance/p90": 0.07, "margin/p50": 0.2, "margin/p90": 0.02}


def judge(policy: Canary = POLICY, **options) -> CanaryJudge:
    return CanaryJudge(policy, THRESHOLDS, **options)


def run(
    the_judge: CanaryJudge,
    candidate: dict[str, float],
    *,
    champion: dict[str, float] = SAME,
    looks: int = 60,
    step: int = 1,
    pi: float = 0.5,
    seed: int = 1,
    seconds: float = 100.0,
) -> Look:
    """Looks of 400 units until the release ends."""
    rng = np.random.default_rng(seed)
    for _ in range(looks):
        statistics = drawn_look(rng, pi=pi, units=400, candidate=candidate, champion=champion)
        look = the_judge.look(statistics, step=step, seconds_at_step=seconds)
        if look.verdict.outcome in (Outcome.PASS, Outcome.FAIL):
            break
    return look


def test_a_good_candidate_passes_after_its_soak() -> None:
    look = run(judge(), GOOD)
    assert look.verdict.outcome is Outcome.PASS
    assert "soak is over" in look.verdict.reason
    assert {finding.metric for finding in look.verdict.findings} == {"errors", "margin/p50", "margin/p90"}
    assert all(finding.evidence >= finding.needed == 20 for finding in look.verdict.findings)


@pytest.mark.parametrize(
    ("harm", "metric"),
    [
        ({"errors": 0.2}, "errors"),
        ({"tolerance/p50": 0.8}, "tolerance/p50"),
        ({"tolerance/p90": 0.4}, "tolerance/p90"),
    ],
)
def test_harm_rolls_back_and_says_which(harm: dict[str, float], metric: str) -> None:
    the_judge = judge()
    look = run(the_judge, GOOD | harm, step=0, pi=0.05)
    assert look.verdict.outcome is look.advance.outcome is Outcome.FAIL
    finding = look.verdict.findings[0]
    assert (finding.metric, finding.outcome) == (metric, Outcome.FAIL)
    assert finding.candidate > finding.champion
    assert finding.low < finding.high
    assert "passed 1/alpha = 100" in look.verdict.reason
    assert "against champion" in look.verdict.reason
    after = run(the_judge, GOOD, looks=5)
    assert after.verdict == look.verdict


def test_no_data_never_passes_and_never_advances() -> None:
    the_judge = judge()
    for _ in range(50):
        look = the_judge.look(LookStatistics(), step=1, seconds_at_step=1e9)
        assert look.verdict.outcome is Outcome.INCONCLUSIVE
        assert look.advance.outcome is Outcome.INCONCLUSIVE
    empty = judge().look(LookStatistics((group(0.05, {}, {}),)), step=0, seconds_at_step=1e9)
    assert (empty.advance.outcome, empty.advance.eta_units) == (Outcome.INCONCLUSIVE, 50)
    assert "one version has no units yet" in " ".join(empty.progress)


def test_the_eta_is_about_right() -> None:
    rng = np.random.default_rng(3)
    the_judge = judge()
    for _ in range(2):
        statistics = drawn_look(rng, pi=0.5, units=100, candidate=GOOD, champion=SAME)
        look = the_judge.look(statistics, step=1, seconds_at_step=100)
    assert look.verdict.outcome is Outcome.INCONCLUSIVE
    assert "more candidate units" in look.verdict.reason
    still = look.verdict.eta_units
    needed = 0
    while look.verdict.outcome is not Outcome.PASS:
        statistics = drawn_look(rng, pi=0.5, units=40, candidate=GOOD, champion=SAME)
        needed += statistics.requests_candidate
        look = the_judge.look(statistics, step=1, seconds_at_step=100)
    assert 0.25 < needed / still < 4


def test_a_candidate_at_the_margin_has_no_eta() -> None:
    policy = POLICY.model_copy(update={"errors": Errors(tolerance=0.2, margin=0.05)})
    look = run(judge(policy), GOOD | {"errors": 0.12}, looks=20)
    assert look.verdict.outcome is Outcome.INCONCLUSIVE
    assert look.verdict.eta_units is None
    assert "does not rise at the present rates" in look.verdict.reason


def test_evidence_alone_does_not_pass_before_the_last_step_and_its_soak() -> None:
    early = judge()
    look = run(early, GOOD, step=0, pi=0.05, looks=80)
    assert look.verdict.outcome is Outcome.INCONCLUSIVE
    assert "still at step 1 of 2" in look.verdict.reason
    soaking = early.look(LookStatistics(), step=1, seconds_at_step=5)
    assert "soaking for 15 s more" in soaking.verdict.reason
    stuck = early.look(LookStatistics(), step=1, seconds_at_step=25, stuck_candidate=4, stuck_champion=1)
    assert "4 requests hang on the candidate" in stuck.verdict.reason
    done = early.look(LookStatistics(), step=1, seconds_at_step=25, stuck_candidate=1, stuck_champion=1)
    assert done.verdict.outcome is Outcome.PASS


def test_advancing_needs_units_time_and_nothing_stuck() -> None:
    rng = np.random.default_rng(4)
    the_judge = judge()

    def look(seconds: float, *, units: int = 0, **options) -> Look:
        statistics = drawn_look(rng, pi=0.05, units=units, candidate=GOOD, champion=SAME)
        return the_judge.look(statistics, step=0, seconds_at_step=seconds, **options)

    assert "of 50 candidate units" in look(100, units=200).advance.reason
    assert "baking for 6 s more" in look(4, units=2000).advance.reason
    assert "hang" in look(10, stuck_candidate=1).advance.reason
    advance = look(10).advance
    assert advance.outcome is Outcome.PASS
    assert "harm" in advance.would_change
    assert "without a rejection" in advance.reason
    assert "last step" in the_judge.look(LookStatistics(), step=1, seconds_at_step=100).advance.reason
    again = the_judge.look(LookStatistics(), step=0, seconds_at_step=100)
    assert "0 of 50" in again.advance.reason


def test_lost_telemetry_is_an_error_not_a_rejection() -> None:
    the_judge = judge()
    for _ in range(40):
        statistics = LookStatistics((group(0.05, {"errors": (2, 0)}, {"errors": (190, 2)}),), 2, 192)
        look = the_judge.look(statistics, step=0, seconds_at_step=100)
    assert look.verdict.outcome is look.advance.outcome is Outcome.ERROR
    assert "telemetry is missing" in look.verdict.reason
    assert run(the_judge, GOOD, looks=2).verdict == look.verdict


def test_hanging_requests_explain_missing_units() -> None:
    the_judge = judge()
    for index in range(1, 41):
        statistics = LookStatistics((group(0.05, {"errors": (2, 0)}, {"errors": (190, 2)}),), 2, 192)
        look = the_judge.look(statistics, step=0, seconds_at_step=100, stuck_candidate=8 * index)
        assert look.verdict.outcome is Outcome.INCONCLUSIVE
        assert look.advance.outcome is Outcome.INCONCLUSIVE


def test_a_required_quantile_without_past_is_an_error() -> None:
    look = CanaryJudge(POLICY, LatencyThresholds({})).look(LookStatistics(), step=0, seconds_at_step=0)
    assert look.verdict.outcome is look.advance.outcome is Outcome.ERROR
    assert "p50, p90" in look.verdict.reason
    assert "evidence_log10/rollback" in look.numbers


BUDGET = POLICY.model_copy(
    update={"latency": Latency(quantiles=("p50",), margin=0.5, budget_ms=LatencyBudget(p95=100))}
)


def test_a_broken_budget_rolls_back_only_where_the_champion_keeps_it() -> None:
    broken, kept = {"budget/p95": 0.3}, {"budget/p95": 0.01}
    look = run(judge(BUDGET), GOOD | broken, champion=SAME | kept)
    assert look.verdict.outcome is Outcome.FAIL
    assert look.verdict.findings[0].metric == "budget/p95"
    assert "p95 budget of 100 ms" in look.verdict.reason
    both = run(judge(BUDGET), GOOD | broken, champion=SAME | broken)
    assert both.verdict.outcome is Outcome.INCONCLUSIVE
    assert "budget p95" in both.verdict.reason
    assert run(judge(BUDGET), GOOD | kept, champion=SAME | kept).verdict.outcome is Outcome.PASS


def test_a_budget_alone_stands_for_latency() -> None:
    the_judge = CanaryJudge(BUDGET, LatencyThresholds({}))
    look = run(the_judge, {"errors": 0.01, "budget/p95": 0.5}, champion={"errors": 0.01, "budget/p95": 0.01})
    assert look.verdict.outcome is Outcome.FAIL


def test_quality_counts_where_it_is_asked() -> None:
    harm, fine = {"quality": 0.6}, {"quality": 0.1}
    look = run(judge(quality=True), GOOD | harm, champion=SAME | fine)
    assert look.verdict.outcome is Outcome.FAIL
    assert "badness by labels" in look.verdict.reason
    assert run(judge(), GOOD | harm, champion=SAME | fine).verdict.outcome is Outcome.PASS


def test_harm_that_shows_only_at_a_larger_share_is_found_soon() -> None:
    """After 20,000 clean units the bets are nearly lost; the reserve finds the change all the same."""
    rng = np.random.default_rng(6)
    the_judge = judge()
    for _ in range(100):
        statistics = drawn_look(rng, pi=0.05, units=4000, candidate=GOOD, champion=SAME)
        the_judge.look(statistics, step=0, seconds_at_step=100)
    units = 0
    outcome = Outcome.INCONCLUSIVE
    while outcome is not Outcome.FAIL:
        statistics = drawn_look(rng, pi=0.5, units=100, candidate=GOOD | {"errors": 0.08}, champion=SAME)
        units += statistics.requests_candidate
        outcome = the_judge.look(statistics, step=1, seconds_at_step=0).verdict.outcome
    assert units < 600


def test_replay_makes_the_same_decisions_byte_for_byte() -> None:
    rng = np.random.default_rng(7)
    stored, looks = [], []
    the_judge = judge()
    for index in range(30):
        step = 0 if index < 12 else 1
        statistics = drawn_look(rng, pi=(0.05, 0.5)[step], units=300, candidate=GOOD, champion=SAME)
        record = StoredLook(statistics, step, 7.3 * index, index % 2, 1)
        stored.append(json.dumps(record.as_dict()))
        look = the_judge.look(
            statistics, step=step, seconds_at_step=7.3 * index, stuck_candidate=index % 2, stuck_champion=1
        )
        looks.append(json.dumps(look.as_dict()))
    again = replay(POLICY, THRESHOLDS, [StoredLook.from_dict(json.loads(line)) for line in stored])
    assert [json.dumps(look.as_dict()) for look in again] == looks


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(ValueError, match="steps 0 to 1"):
        judge().look(LookStatistics(), step=2, seconds_at_step=0)


def test_numbers_are_finite_at_the_extremes() -> None:
    many = group(1e-6, {"errors": (0, 10**9)}, {"errors": (0, 10**9)}, entered=(10**9, 10**9))
    the_judge = judge()
    for _ in range(3):
        look = the_judge.look(LookStatistics((many,)), step=0, seconds_at_step=0)
        assert all(math.isfinite(value) for value in look.numbers.values())
    json.dumps(look.as_dict(), allow_nan=False)
    clean = group(0.5, {"errors": (10**9, 0)}, {"errors": (0, 10**9)}, entered=(1, 1))
    look = judge().look(LookStatistics((clean,)), step=0, seconds_at_step=0)
    json.dumps(look.as_dict(), allow_nan=False)
    assert "over 1e12" in " ".join(look.progress)


@pytest.mark.slow
def test_operating_characteristics_of_the_whole_judge() -> None:
    """evidence.md's stream: 5% share, looks at every 50 candidate units, +1 pp and +20% margins."""
    policy = Canary(steps=(5,), bake_s=0, soak_s=0)
    thresholds = LatencyThresholds({"p50": 1.0, "p90": 1.9, "p95": 2.3, "p99": 3.2, "p99.9": 4.7})
    z = {"p50": 0.0, "p90": 1.2816, "p95": 1.6449, "p99": 2.3263, "p99.9": 3.0902}

    def rates(errors: float, slack: float) -> dict[str, float]:
        found = {"errors": errors}
        for name, quantile in z.items():
            for kind, allowed in (("tolerance", 0.1), ("margin", 0.2)):
                shift = math.log(1 + allowed) * slack / 0.5
                found[f"{kind}/{name}"] = 0.5 * math.erfc((quantile + shift) / math.sqrt(2))
        return found

    def outcomes(errors: float, releases: int, seed: int) -> list[tuple[Outcome, int]]:
        found = []
        rng = np.random.default_rng(seed)
        for _ in range(releases):
            the_judge, units = CanaryJudge(policy, thresholds), 0
            outcome = Outcome.INCONCLUSIVE
            while outcome is Outcome.INCONCLUSIVE and units < 10_000:
                look = drawn_look(
                    rng, pi=0.05, units=1000, candidate=rates(errors, 1), champion=rates(0.01, 0)
                )
                units += look.requests_candidate
                outcome = the_judge.look(look, step=0, seconds_at_step=0).verdict.outcome
            found.append((outcome, units))
        return found

    good = outcomes(0.01, 40, seed=21)
    assert sum(outcome is Outcome.PASS for outcome, _ in good) > 37
    assert np.median([units for _, units in good]) <= 1700
    bad = outcomes(0.05, 30, seed=22)
    assert all(outcome is Outcome.FAIL for outcome, _ in bad)
    assert np.median([units for _, units in bad]) <= 300


# The contrast that people read ------------------------------------------------------------------


def test_rates_that_drift_with_the_share_are_not_a_difference() -> None:
    """Pooled, the candidate would look far worse: it was mostly there when everything was worse."""
    strata = Strata()
    strata.add(group(0.05, {"errors": (99, 1)}, {"errors": (1881, 19)}))
    strata.add(group(0.95, {"errors": (1710, 190)}, {"errors": (90, 10)}))
    contrast = strata.contrast("errors")
    assert contrast.candidate > 2 * contrast.champion
    assert contrast.low < 0 < contrast.high
    assert (contrast.low + contrast.high) / 2 == pytest.approx(0, abs=1e-12)
    assert "points" in contrast.text


def test_a_difference_needs_both_arms() -> None:
    strata = Strata()
    assert strata.contrast("errors").text == "one version has no units yet"
    strata.add(group(0.05, {"errors": (10, 0)}, {"errors": (0, 0)}))
    strata.add(group(0.5, {"errors": (0, 0)}, {"errors": (10, 0)}))
    contrast = strata.contrast("errors")
    assert (contrast.low, contrast.high) == (None, None)
    assert contrast.text == "candidate 0.00% against champion 0.00%"


def test_the_interval_holds_at_every_look() -> None:
    rng = np.random.default_rng(8)
    missed = 0
    for _ in range(200):
        strata = Strata()
        inside = True
        for _ in range(25):
            look = drawn_look(rng, pi=0.5, units=200, candidate={"errors": 0.1}, champion={"errors": 0.05})
            strata.add(look.groups[0])
            contrast = strata.contrast("errors")
            inside &= contrast.low <= 0.05 <= contrast.high
        missed += not inside
    assert missed <= 18


def test_the_interval_feeds_the_ramp() -> None:
    policy = POLICY.model_copy(update={"error_budget": 500.0})
    look = run(judge(policy), GOOD, step=0, pi=0.05, looks=20)
    high = look.numbers["difference/errors/high"]
    assert next_step(policy, 0, excess_high=high, requests_per_s=150).step == 1
