"""Every bet to the digit: its alternatives, stakes and weights, and what it is expected to win."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.sequential import (
    BINARY,
    LEVELS,
    FloatArray,
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


def unit(level: int) -> FloatArray:
    return np.eye(21)[level]


NOTHING = np.zeros(21)


def test_alternatives() -> None:
    boundary = np.array([0.2, 0.5])
    assert times(1.5, 2, 10)(boundary) == pytest.approx(np.array([[0.3, 0.4, 0.95], [0.75, 0.95, 0.95]]))
    assert times(2, most=0.7)(boundary) == pytest.approx(np.array([[0.4], [0.7]]))
    assert odds_times(2, 4)(boundary) == pytest.approx(np.array([[1 / 3, 0.5], [2 / 3, 0.8]]))
    assert below(0.1, 0.3)(boundary) == pytest.approx(np.array([[0.1, -0.1], [0.4, 0.2]]))


def plain_bets(
    tau: float, past: float, dispersion: float, pi: float, ratio: float, excess: float, *, worse: bool
) -> tuple[float, float, float, float]:
    """Stakes and centres of one bet in plain floats: candidate's and champion's stake, then centres."""
    boundary = ratio * past + excess
    centre_b = boundary + pi * (tau - boundary)
    centre_a = (centre_b - excess) / ratio
    odds = ratio * pi / (1 - pi)
    stake = (tau - centre_b) / (centre_b * (1 - centre_b) * dispersion)
    if worse:
        stake = min(max(stake, 0.0), 0.95 / centre_b, 0.95 / (odds * max(1 - centre_a, 1e-9)))
    else:
        stake = max(min(stake, 0.0), -0.95 / (1 - centre_b), -0.95 / (odds * max(centre_a, 1e-9)))
    return stake, stake * odds, centre_b, centre_a


@pytest.mark.parametrize("worse", [True, False])
@pytest.mark.parametrize(("ratio", "excess"), [(1.0, 0.0), (1.3, 0.02), (0.7, 0.1)])
@pytest.mark.parametrize("pi", [0.03, 0.5, 0.93])
def test_wealth_follows_plain_arithmetic_with_levels_dispersion_and_memory(
    worse: bool, ratio: float, excess: float, pi: float
) -> None:
    rng = np.random.default_rng(3)
    factors = (1.2, 2.5, 6.0) if worse else (0.9, 0.4)
    weights = [3, 2, 1][: len(factors)]
    process = TwoSample(
        times(*factors),
        weights,
        worse=worse,
        prior_mean=0.08,
        prior_units=50,
        ratio=ratio,
        excess=excess,
        memory=60,
        reserve=0.1,
    )
    wealth = [0.9 * weight / sum(weights) for weight in weights]
    units, total, squares = 50.0, 4.0, 4.0
    for _ in range(6):
        candidate, champion = rng.multinomial(9, np.full(21, 1 / 21), size=2)
        champion[4:] //= 3
        past = total / units
        dispersion = min(max((squares / units - past**2) / (past * (1 - past)), 0.02), 1.0)
        for index, factor in enumerate(factors):
            tau = min((ratio * past + excess) * factor, 0.95)
            bet = plain_bets(tau, past, dispersion, pi, ratio, excess, worse=worse)
            for level in range(21):
                y = level / 20
                wealth[index] *= (1 + bet[0] * (y - bet[2])) ** int(candidate[level])
                wealth[index] *= (1 - bet[1] * (y - bet[3])) ** int(champion[level])
        process.update(candidate, champion, pi)
        for level in range(21):
            units += int(champion[level])
            total += int(champion[level]) * level / 20
            squares += int(champion[level]) * (level / 20) ** 2
        keep = min(60 / units, 1.0)
        units, total, squares = units * keep, total * keep, squares * keep
        assert np.exp(process.wealth.log_bets) == pytest.approx(wealth, rel=1e-9)
        assert math.exp(float(process.log_e)) == pytest.approx(sum(wealth) + 0.1, rel=1e-9)


def test_what_a_first_guess_weighs_and_how_long_champions_are_remembered() -> None:
    process = TwoSample(times(2.0), [1], worse=True, prior_mean=0.1)
    process.update(NOTHING, 300 * unit(0), 0.5)
    _, _, centre, _ = process.bets(1e-9)
    assert float(centre[0]) == pytest.approx(10 / 400, rel=1e-6)
    process.update(NOTHING, 40_000 * unit(20), 0.5)
    process.update(NOTHING, 20_000 * unit(0), 0.5)
    _, _, centre, _ = process.bets(1e-9)
    assert float(centre[0]) == pytest.approx(0.5 * 40_010 / 40_400, rel=1e-6)


@pytest.mark.parametrize("pi", [0.05, 0.6])
@pytest.mark.parametrize("worse", [True, False])
def test_expected_growth_is_the_mean_of_the_log_factors(pi: float, worse: bool) -> None:
    def make() -> TwoSample:
        alternatives = times(1.5, 4) if worse else times(0.6, 0.2)
        return TwoSample(alternatives, [1, 1], worse=worse, prior_mean=0.1, excess=0.02)

    def won(candidate: FloatArray, champion: FloatArray) -> FloatArray:
        process = make()
        process.update(candidate, champion, pi)
        return process.wealth.log_bets - math.log(0.5)

    for mean_b, mean_a in ((0.3, 0.1), (0.02, 0.25)):
        of_b = mean_b * won(unit(20), NOTHING) + (1 - mean_b) * won(unit(0), NOTHING)
        of_a = mean_a * won(NOTHING, unit(20)) + (1 - mean_a) * won(NOTHING, unit(0))
        expected = of_b + (1 - pi) / pi * of_a
        assert make().expected_growth(mean_b, mean_a, pi) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("worse", [True, False])
def test_one_sample_to_the_digit(worse: bool) -> None:
    null, tau = 0.2, 0.3 if worse else 0.1
    weights = [3, 1]
    process = OneSample(null, times(tau / null, 1), weights, worse=worse, levels=BINARY)
    assert float(process.log_e) == pytest.approx(0, abs=1e-12)
    process.update([5, 2])
    expected = 0.75 * (tau / null) ** 2 * ((1 - tau) / (1 - null)) ** 5 + 0.25
    assert math.exp(float(process.log_e)) == pytest.approx(expected, rel=1e-12)
    assert process.log_e_with([0, 0]) == pytest.approx(process.log_e)
    process.update([0, 1])
    growth = process.expected_growth(0.4)
    assert growth[0] == pytest.approx(
        0.4 * math.log(tau / null) + 0.6 * math.log((1 - tau) / (1 - null)), rel=1e-9
    )
    assert growth[1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("worse", [True, False])
def test_no_unit_costs_more_than_the_stakes_limit_and_no_bet_turns_round(worse: bool) -> None:
    bold, wrong = (1 - 1e-9, 0.01) if worse else (1e-9, 0.9)
    process = OneSample(0.3, lambda mean: np.array([bold, wrong]), [1, 1], worse=worse, levels=BINARY)
    process.update([1, 0] if worse else [0, 1])
    assert np.exp(process.wealth.log_bets) == pytest.approx([0.025, 0.5], rel=1e-6)


def test_reserves_and_budgets_of_shapes() -> None:
    process = OneSample([0.1, 0.4], times(2), [1], worse=True, reserve=0.2, levels=BINARY)
    process.update([[0, 1], [0, 0]])
    assert np.exp(process.log_e) == pytest.approx([0.8 * 2 + 0.2, 1.0])
    assert process.wealth.reserve == pytest.approx(0.2)
    assert process.levels is BINARY
    assert OneSample(0.1, times(2), [1], worse=True).levels is LEVELS
    assert TwoSample(times(2), [1], worse=True, prior_mean=0.1).levels is LEVELS


def test_paired_bets_to_the_digit() -> None:
    odds = np.array([0.6, 0.67, 0.75, 0.85, 0.95])
    worse = Paired(worse=True)
    worse.update(3, 1, 10)
    assert np.exp(worse.log_e) == pytest.approx(np.mean((2 * odds) ** 3 * (2 * (1 - odds))), rel=1e-12)
    assert worse.expected_growth(0.2, 0.1) == pytest.approx(
        0.2 * np.log(2 * odds) + 0.1 * np.log(2 * (1 - odds)), rel=1e-9
    )
    margin = 0.2
    stakes = np.array([0.1, 0.3, 0.6, 0.8, 0.95]) / (1 - margin)
    weights = np.array([0.05, 0.1, 0.15, 0.2, 0.5])
    fine = Paired(worse=False, margin=margin, shape=(2,))
    fine.update([1, 0], [2, 0], [3, 4])
    factors = (1 + stakes * (margin - 1)) * (1 + stakes * (margin + 1)) ** 2 * (1 + stakes * margin) ** 3
    expected = [weights @ factors, weights @ (1 + stakes * margin) ** 4]
    assert np.exp(fine.log_e) == pytest.approx(expected, rel=1e-12)
    growth = 0.3 * np.log(1 + stakes * (margin - 1)) + 0.1 * np.log(1 + stakes * (margin + 1))
    growth += 0.6 * np.log(1 + stakes * margin)
    assert fine.expected_growth(0.3, 0.1) == pytest.approx(growth, rel=1e-9)
    plain = Paired(worse=False)
    plain.update(0, 1, 0)
    assert math.exp(float(plain.log_e)) == pytest.approx(1 + weights @ stakes * 0.8, rel=1e-12)


def test_sample_ratio_to_the_digit() -> None:
    pi, odds = 0.1, np.array([0.25, 0.5, 0.75, 0.9, 1.1, 1.5])
    weights = np.array([0.2, 0.2, 0.2, 0.15, 0.15, 0.1])
    seen = pi * odds / (pi * odds + 1 - pi)
    process = SampleRatio()
    process.update(2, 30, pi)
    factors = (seen / pi) ** 2 * ((1 - seen) / (1 - pi)) ** 30
    assert math.exp(process.log_e) == pytest.approx(0.5 + 0.5 * weights @ factors, rel=1e-12)
    explained = factors * np.minimum((seen / pi) ** 1 * ((1 - seen) / (1 - pi)) ** 4, 1)
    assert math.exp(process.log_e_if_reported(1, 4, pi)) == pytest.approx(
        0.5 + 0.5 * weights @ explained, rel=1e-12
    )


def test_wealth_is_staked_stored_and_restored() -> None:
    wealth = Wealth([1, 3], reserve=0.4)
    assert np.exp(wealth.log_bets) == pytest.approx([0.15, 0.45])
    wealth.grow(np.log([2.0, 0.5]))
    wealth.stake(0.25)
    assert wealth.reserve == pytest.approx(0.3)
    assert np.exp(wealth.log_bets) == pytest.approx([0.3 + 0.025, 0.225 + 0.075])
    assert math.exp(float(wealth.log_e)) == pytest.approx(0.3 + 0.325 + 0.3)
    assert math.exp(float(wealth.with_factors(np.log([2.0, 1.0])))) == pytest.approx(0.3 + 0.65 + 0.3)
    again = Wealth([1, 3])
    again.restore(wealth.log_bets, wealth.reserve)
    assert again.log_e == wealth.log_e
    again.grow(np.log([2.0, 2.0]))
    assert math.exp(float(wealth.log_e)) == pytest.approx(0.925)
    with pytest.raises(ValueError, match=r"^Stored bets have shape \(3,\), these \(2,\)\.$"):
        again.restore([0.0, 0.0, 0.0], 0.1)
    all_in = Wealth([1, 1], reserve=1.0)
    assert float(all_in.log_e) == pytest.approx(0)
    assert np.all(np.isneginf(all_in.log_bets))


def test_combined_evidence_is_a_mean_over_the_last_axis() -> None:
    log_es = np.log([[10.0, 1.0, 4.0], [2.0, 2.0, 2.0]])
    assert np.exp(combine(log_es, [2, 1, 1])) == pytest.approx([(20 + 1 + 4) / 4, 2.0])


def test_units_to_go_to_the_digit() -> None:
    log_bets = np.log([0.25, 0.5])
    assert units_to_go(log_bets, np.array([0.1, 0.01]), math.log(10)) == pytest.approx(math.log(40) / 0.1)
    assert units_to_go(log_bets, np.array([0.1, 0.0]), math.log(0.75)) == 0.0
    assert units_to_go(log_bets, np.array([-0.1, 1.0]), math.log(0.8)) == pytest.approx(math.log(1.6))
    assert units_to_go(log_bets, np.zeros(2), math.log(10)) is None


def test_a_share_that_leaves_no_choice_is_named() -> None:
    process = TwoSample(times(2), [1], worse=True, prior_mean=0.1)
    with pytest.raises(ValueError, match=r"^pi is 1; a comparison needs 0 < pi < 1\. Next: leave these"):
        process.bets(1)
