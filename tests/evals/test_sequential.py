"""The e-processes: exact expectation, false alarms, power, numerical limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.sequential import (
    BINARY,
    LEVELS,
    OneSample,
    Paired,
    SampleRatio,
    TwoSample,
    Wealth,
    below,
    combine,
    odds_times,
    times,
    units_to_go,
)

ALTERNATIVES = {
    "times": (times(1.5, 2, 3, 5, 10, 30), 6),
    "odds": (odds_times(1.5, 2, 4, 10), 4),
    "below": (below(0.005, 0.01), 2),
    "under": (times(0.75, 0.4), 2),
}
SHARES = (1e-6, 0.01, 0.05, 0.25, 0.5, 0.95, 1 - 1e-6)


def two_sample(kind: str = "times", *, worse: bool = True, prior_mean: float = 0.01, **options) -> TwoSample:
    alternatives, count = ALTERNATIVES[kind]
    return TwoSample(alternatives, [1] * count, worse=worse, prior_mean=prior_mean, **options)


@pytest.mark.parametrize("worse", [True, False])
@pytest.mark.parametrize("kind", list(ALTERNATIVES))
def test_one_step_expectation_never_exceeds_one(kind: str, worse: bool) -> None:
    """Over a grid of null parameters, with a wrong idea of the champion's mean and dispersion."""
    worst = -math.inf
    for ratio in (0.9, 1.0, 1.2):
        for excess in (0.0, 0.01, 0.05):
            for guess in (1e-5, 0.001, 0.01, 0.1, 0.5, 0.95, 1.0):
                process = two_sample(kind, worse=worse, prior_mean=guess, ratio=ratio, excess=excess)
                if guess == 0.1:  # a dispersion far under that of 0/1 values makes the stakes bold
                    process.update(np.zeros(21), np.eye(21)[2] * 1000, 0.5)
                for pi in SHARES:
                    stake_b, stake_a, centre_b, centre_a = process.bets(pi)
                    for mean_a in np.linspace(0, 1, 11):
                        boundary = ratio * mean_a + excess
                        low, high = (0.0, min(boundary, 1.0)) if worse else (boundary, 1.0)
                        for mean_b in np.linspace(low, high, 4) if low <= high else ():
                            of_b = stake_b * (mean_b - centre_b)
                            of_a = -stake_a * (mean_a - centre_a)
                            worst = max(worst, float(np.max(pi * of_b + (1 - pi) * of_a)))
                    for y in (0.0, 1.0):
                        assert np.all(1 + stake_b * (y - centre_b) >= 0.05 - 1e-9)
                        assert np.all(1 - stake_a * (y - centre_a) >= 0.05 - 1e-9)
    assert worst <= 1e-12


def test_binary_case_is_the_likelihood_ratio_of_turner_ly_grunwald() -> None:
    """An independent formula: theta_b against the share-weighted mixture, arm by arm."""
    process = TwoSample(times(2.0), [1], worse=True, prior_mean=0.02, levels=BINARY)
    pi, theta_a, theta_b = 0.3, 0.02, 0.04
    theta_0 = pi * theta_b + (1 - pi) * theta_a
    process.update([90, 10], [180, 20], pi)
    expected = 10 * math.log(theta_b / theta_0) + 90 * math.log((1 - theta_b) / (1 - theta_0))
    expected += 20 * math.log(theta_a / theta_0) + 180 * math.log((1 - theta_a) / (1 - theta_0))
    assert float(process.log_e) == pytest.approx(expected, rel=1e-12)


def binomial_levels(rng: np.random.Generator, units: np.ndarray, mean: float) -> np.ndarray:
    bad = rng.binomial(units, mean)
    return np.stack([units - bad, bad], axis=-1)


def run_streams(mean_b: float, *, streams: int, looks: int, seed: int, worse: bool = True) -> np.ndarray:
    """First look (from 1) at which each stream's E reaches 100, 0: never. Drift and a ramp."""
    rng = np.random.default_rng(seed)
    process = TwoSample(
        times(1.5, 2, 3, 5, 10, 30),
        [0.3, 0.25, 0.15, 0.1, 0.1, 0.1],
        worse=worse,
        prior_mean=0.01,
        shape=(streams,),
        levels=BINARY,
        reserve=0.2,
    )
    first = np.zeros(streams, np.int64)
    for look in range(looks):
        pi = (0.05, 0.25, 0.5, 0.95)[min(4 * look // looks, 3)]
        drift = 1 + 2 * look / looks
        units_b = rng.binomial(400, pi, streams)
        candidate = binomial_levels(rng, units_b, min(mean_b * drift, 1))
        process.update(candidate, binomial_levels(rng, 400 - units_b, 0.01 * drift), pi)
        process.wealth.stake(0.01)
        first[(first == 0) & (process.log_e >= math.log(100))] = look + 1
    return first


def test_equal_versions_are_rarely_rejected_under_ramp_and_drift() -> None:
    rejected = np.count_nonzero(run_streams(0.01, streams=4000, looks=80, seed=1))
    assert rejected <= 40 + 3 * math.sqrt(40)


def test_harm_is_found() -> None:
    first = run_streams(0.05, streams=200, looks=80, seed=2)
    assert np.all(first > 0)
    assert np.median(first) <= 20


def test_non_inferiority_is_rarely_shown_at_the_margin_and_soon_for_equals() -> None:
    rng = np.random.default_rng(3)

    def share_shown(excess: float) -> float:
        process = two_sample("below", worse=False, excess=0.01, shape=(2000,), levels=BINARY)
        shown = np.zeros(2000, np.bool_)
        for _ in range(60):
            units = np.full(2000, 50)
            champion = binomial_levels(rng, np.full(2000, 950), 0.01)
            process.update(binomial_levels(rng, units, 0.01 + excess), champion, 0.05)
            shown |= process.log_e >= math.log(20)
        return float(shown.mean())

    assert share_shown(0.01) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert share_shown(0.0) >= 0.9


def test_values_of_low_dispersion_are_used() -> None:
    """Means of ten requests vary less than single ones: the same shift needs fewer units."""
    rng = np.random.default_rng(4)

    def evidence(per_unit: int) -> float:
        process = two_sample(prior_mean=0.05)
        levels = np.linspace(0, 20, per_unit + 1).astype(int)
        for _ in range(20):
            counts = []
            for mean, units in ((0.1, 50), (0.05, 950)):
                value = levels[rng.binomial(per_unit, mean, units)]
                counts.append(np.bincount(value, minlength=21))
            process.update(*counts, 0.05)
        return float(process.log_e)

    assert evidence(10) > 2 * evidence(1) > 0


counts = st.integers(0, 10**9)


@settings(max_examples=150, deadline=None)
@given(
    arms=st.tuples(counts, counts, counts, counts),
    pi=st.sampled_from(SHARES),
    guess=st.sampled_from([0.0, 1e-9, 0.01, 0.5, 1.0]),
    worse=st.booleans(),
    kind=st.sampled_from(list(ALTERNATIVES)),
    excess=st.sampled_from([0.0, 0.01, 0.9]),
)
def test_extremes_stay_finite(arms, pi, guess, worse, kind, excess) -> None:
    process = two_sample(kind, worse=worse, prior_mean=guess, excess=excess)
    good_b, bad_b, good_a, bad_a = arms
    candidate, champion = np.zeros(21), np.zeros(21)
    candidate[[0, 20]], champion[[0, 20]] = (good_b, bad_b), (good_a, bad_a)
    for _ in range(2):
        process.update(candidate, champion, pi)
        assert np.isfinite(process.log_e)
    assert np.all(np.isfinite(process.expected_growth(0.3, 0.2, pi)))


@settings(max_examples=60, deadline=None)
@given(
    base=st.floats(0.001, 0.9),
    lower=st.floats(0, 1),
    more=st.floats(0, 1),
    pi=st.sampled_from(SHARES[1:-1]),
)
def test_more_harm_never_means_less_expected_evidence(
    base: float, lower: float, more: float, pi: float
) -> None:
    low, high = sorted((lower, more))
    worse, fine = two_sample(prior_mean=base), two_sample("under", worse=False, prior_mean=base)
    assert np.all(worse.expected_growth(high, base, pi) >= worse.expected_growth(low, base, pi) - 1e-12)
    assert np.all(fine.expected_growth(high, base, pi) <= fine.expected_growth(low, base, pi) + 1e-12)


def test_no_units_change_nothing() -> None:
    process = two_sample()
    process.update(np.zeros(21), np.zeros(21), 0.05)
    assert float(process.log_e) == pytest.approx(0)


@pytest.mark.parametrize("pi", [0.0, 1.0, -0.1, math.nan])
def test_without_a_choice_there_is_no_comparison(pi: float) -> None:
    with pytest.raises(ValueError, match="0 < pi < 1"):
        two_sample().update(np.zeros(21), np.zeros(21), pi)


def test_shapes_run_independent_processes() -> None:
    together = two_sample(prior_mean=0.1, shape=(2,))
    candidate, champion = np.zeros((2, 21)), np.zeros((2, 21))
    candidate[:, 0], candidate[1, 20] = (40, 30), 10
    champion[:, 0] = 100
    together.update(candidate, champion, 0.3)
    for index in range(2):
        alone = two_sample(prior_mean=0.1)
        alone.update(candidate[index], champion[index], 0.3)
        assert together.log_e[index] == pytest.approx(float(alone.log_e))


def test_memory_forgets_but_counts_stay_used() -> None:
    process = TwoSample(times(2.0), [1], worse=True, prior_mean=0.5, memory=1000, levels=BINARY)
    for _ in range(20):
        process.update([0, 0], [990, 10], 0.5)
    _, _, centre_b, _ = process.bets(1e-6)
    assert float(centre_b[0]) == pytest.approx(0.01, rel=0.01)


def test_reserve_bounds_how_far_evidence_falls_behind() -> None:
    with_reserve, without = Wealth([1, 1], reserve=0.2), Wealth([1, 1])
    for wealth in (with_reserve, without):
        wealth.grow(np.array([-50.0, -80.0]))
    assert float(with_reserve.log_e) == pytest.approx(math.log(0.2))
    with_reserve.stake(0.5)
    without.stake(0.5)
    assert float(np.max(with_reserve.log_bets)) == pytest.approx(math.log(0.05))
    assert float(without.log_e) == pytest.approx(-50 + math.log(0.5), abs=1e-6)
    assert float(with_reserve.log_e) == pytest.approx(math.log(0.2))


@pytest.mark.parametrize("worse", [True, False])
@pytest.mark.parametrize("null", [1e-9, 0.01, 0.2, 0.5, 1.0])
def test_one_sample_expectation(null: float, worse: bool) -> None:
    process = OneSample(null, odds_times(1.5, 4) if worse else times(0.5, 0.1), [1, 1], worse=worse)
    mean = float(np.clip(null, 1e-6, 1 - 1e-6))
    up, down = np.zeros(21), np.zeros(21)
    up[20], down[0] = 1, 1
    factors = []
    for outcome in (up, down):
        fresh = OneSample(null, odds_times(1.5, 4) if worse else times(0.5, 0.1), [1, 1], worse=worse)
        fresh.update(outcome)
        factors.append(math.exp(float(fresh.log_e)))
    assert mean * factors[0] + (1 - mean) * factors[1] <= 1 + 1e-12
    assert np.all(np.isfinite(process.expected_growth(0.3)))


def test_one_sample_finds_a_broken_budget_and_shows_a_kept_one() -> None:
    over = OneSample([0.05, 0.01], odds_times(1.5, 2, 4, 10), [1] * 4, worse=True)
    within = OneSample([0.05, 0.01], times(0.75, 0.4, 0.1), [1] * 3, worse=False)
    counts = np.zeros((2, 21))
    counts[0, [0, 20]], counts[1, [0, 20]] = (160, 40), (600, 0)
    over.update(counts)
    within.update(counts)
    assert over.log_e[0] > math.log(100) > over.log_e[1]
    assert within.log_e[1] > math.log(20) > within.log_e[0]


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.3, 0.99])
def test_paired_non_inferiority_expectation_at_the_margin(margin: float) -> None:
    factors = []
    for only_b, only_a, alike in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        process = Paired(worse=False, margin=margin)
        process.update(only_b, only_a, alike)
        factors.append(math.exp(float(process.log_e)))
    for only_a in np.linspace(0, (1 - margin) / 2, 5):
        only_b = margin + only_a
        chances = np.array([only_b, only_a, 1 - only_a - only_b])
        assert chances @ factors <= 1 + 1e-12


def test_paired_rollback_is_a_fair_coin_under_the_null() -> None:
    up, down = Paired(worse=True), Paired(worse=True)
    up.update(1, 0, 5)
    down.update(0, 1, 5)
    assert 0.5 * math.exp(float(up.log_e)) + 0.5 * math.exp(float(down.log_e)) == pytest.approx(1, abs=1e-12)
    up.update(9, 1, 0)
    assert float(up.log_e) > math.log(10)
    assert up.expected_growth(0.1, 0.0).max() > 0 > up.expected_growth(0.0, 0.1).max()


def test_sample_ratio_notices_lost_records_and_not_their_absence() -> None:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(300):
        process, worst = SampleRatio(), 0.0
        for _ in range(60):
            ours = rng.binomial(200, 0.05)
            process.update(ours, 200 - ours, 0.05)
            process.wealth.stake(0.004)
            worst = max(worst, process.log_e)
        alarms += worst >= math.log(1000)
    assert alarms <= 2
    for _ in range(6):
        process.update(1, 190, 0.05)
    assert process.log_e > math.log(1000)
    assert process.log_e_if_reported(54, 0, 0.05) < math.log(1000)
    assert process.log_e_if_reported(0, 5000, 0.05) <= process.log_e


def test_combine_is_the_weighted_mean() -> None:
    assert float(combine([math.log(50), 0.0], [0.4, 0.6])) == pytest.approx(math.log(0.4 * 50 + 0.6))
    assert np.isfinite(combine([1e6, -1e6], [1, 1]))


def test_units_to_go() -> None:
    start = np.log([0.5, 0.5])
    assert units_to_go(start, np.array([0.01, -1.0]), math.log(20)) == pytest.approx(
        (math.log(20) + math.log(2)) / 0.01
    )
    assert units_to_go(start, np.array([-0.01, -1.0]), math.log(20)) is None
    assert units_to_go(start + 10, np.array([0.0, 0.0]), math.log(20)) == 0


def test_levels_are_twentieths() -> None:
    assert LEVELS.size == 21
    assert LEVELS[1] == pytest.approx(0.05)
