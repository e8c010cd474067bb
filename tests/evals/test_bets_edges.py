"""The bets at the ends of their domain: clips, shapes, memory, and single-precision numbers."""

from __future__ import annotations

import numpy as np
import pytest

from evals.contrast import Strata
from evals.looks import UnitGroup
from evals.sequential import (
    LEVELS,
    FloatArray,
    OneSample,
    Paired,
    TwoSample,
    Wealth,
    below,
    combine,
    odds_times,
    times,
)

TINY = 1e-6
DIGITS = 1e-12


def always(*rates: float) -> object:
    """Alternatives that ignore the boundary, out of range if so wanted."""
    return lambda boundary: np.broadcast_to(np.array(rates), (*np.shape(boundary), len(rates))).copy()


def two(prior_mean: object, alternatives: object, *, worse: bool = True, **more: object) -> TwoSample:
    return TwoSample(alternatives, [1.0], worse=worse, prior_mean=prior_mean, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prior_mean", "wanted", "taken"), [(0.5, -1.0, TINY / 10), (0.5, 2.0, 1 - TINY / 10), (0.5, 0.3, 0.3)]
)
def test_alternatives_stay_a_tenth_of_the_smallest_mean_from_the_ends(
    prior_mean: float, wanted: float, taken: float
) -> None:
    _, _, centre, _ = two(prior_mean, always(wanted)).bets(0.05)
    assert centre[0] == pytest.approx(0.5 + 0.05 * (taken - 0.5), rel=DIGITS, abs=0)


@pytest.mark.parametrize(("prior_mean", "wanted", "end"), [(0.0, -1.0, TINY), (1.0, 2.0, 1 - TINY)])
def test_centres_stay_off_the_ends(prior_mean: float, wanted: float, end: float) -> None:
    _, _, centre, _ = two(prior_mean, always(wanted)).bets(0.5)
    assert centre[0] == end


def test_the_boundary_stays_off_zero() -> None:
    """A ratio below one asks for a better candidate than the champion that had no bad unit yet."""
    seen: list[FloatArray] = []

    def spy(boundary: FloatArray) -> FloatArray:
        seen.append(boundary)
        return times(2.0)(boundary)

    two(0.0, spy, ratio=0.5).bets(0.5)
    assert seen[0] == TINY


def test_dispersion_is_never_taken_for_more_than_that_of_zeros_and_ones() -> None:
    """After nothing but bad units the plain formula would say two."""
    stake, _, centre, _ = two(1.0, odds_times(0.5), worse=False).bets(0.05)
    past = 1 - TINY
    tau = past * 0.5 / (1 - past + past * 0.5)
    assert centre[0] == pytest.approx(past + 0.05 * (tau - past), rel=DIGITS)
    assert stake[0] == pytest.approx((tau - centre[0]) / (centre[0] * (1 - centre[0])), rel=1e-6)


def test_dispersion_has_a_floor() -> None:
    """Champions that are all equally bad have none, and no stake may be infinite."""
    test = two(0.5, always(0.5001), prior_units=1e-9)
    test.update(np.zeros(21), 1000 * np.eye(21)[10], 0.05)
    stake, _, centre, _ = test.bets(0.05)
    assert stake[0] == pytest.approx((0.5001 - centre[0]) / (centre[0] * (1 - centre[0]) * 0.02), rel=1e-6)


def test_rows_of_a_shape_do_not_see_each_other() -> None:
    champions = np.stack([100 * np.eye(21)[0] + 20 * np.eye(21)[20], 300 * np.eye(21)[0]])
    candidates = np.stack([9 * np.eye(21)[0], 3 * np.eye(21)[20]])
    together = two(0.1, times(2.0), shape=(2,))
    for _ in range(3):
        together.update(candidates, champions, 0.2)
    for row in (0, 1):
        alone = two(0.1, times(2.0))
        for _ in range(3):
            alone.update(candidates[row], champions[row], 0.2)
        assert together.log_e[row] == pytest.approx(alone.log_e, rel=DIGITS)
        for of_both, of_one in zip(together.bets(0.2), alone.bets(0.2), strict=True):
            assert of_both[row] == pytest.approx(of_one, rel=DIGITS)


def test_what_is_remembered_keeps_its_dispersion() -> None:
    """Sums, squares and units are forgotten alike: mean and dispersion of the same champions stay."""
    champions = 50 * np.eye(21)[2] + 50 * np.eye(21)[6]
    test = two(LEVELS[4], always(0.21), prior_units=1e-9, memory=150.0)
    for _ in range(5):
        test.update(np.zeros(21), champions, 0.05)
    variance = np.mean([LEVELS[2] ** 2, LEVELS[6] ** 2]) - LEVELS[4] ** 2
    dispersion = variance / (LEVELS[4] * (1 - LEVELS[4]))
    stake, _, centre, _ = test.bets(0.05)
    assert stake[0] == pytest.approx(
        (0.21 - centre[0]) / (centre[0] * (1 - centre[0]) * dispersion), rel=1e-6
    )


def test_wealth_has_its_shape_before_the_first_unit() -> None:
    assert OneSample(np.array([0.1, 0.2]), times(2.0), [1.0], worse=True).log_e.shape == (2,)
    assert Paired(worse=True, shape=(2, 3)).log_e.shape == (2, 3)


def test_single_precision_numbers_are_computed_in_double() -> None:
    """Counts and rates come from frames, whose columns may be narrow."""
    third = np.array([1 / 3, 1 / 7], np.float32)
    wide = third.astype(np.float64)
    boundary = np.array([0.02], np.float32)
    for make in (times, odds_times, below):
        found, wanted = make(*third)(boundary.astype(np.float64)), make(*wide)(boundary.astype(np.float64))
        assert found.dtype == np.float64
        assert found == pytest.approx(wanted, rel=DIGITS)
        assert make(*[np.float16(0.1)])(np.array([0.5], np.float32)).dtype == np.float64
    assert combine(third, third) == pytest.approx(combine(wide, wide), rel=DIGITS)
    assert combine(third, third).dtype == np.float64
    assert Wealth(third).log_e == pytest.approx(Wealth(wide).log_e, rel=DIGITS)
    wealth = Wealth([0.5, 0.5])
    wealth.restore(third, 0.25)
    assert wealth.log_e.dtype == np.float64
    narrow, plain = two(third, times(2.0), shape=(2,)), two(wide, times(2.0), shape=(2,))
    for of_narrow, of_plain in zip(narrow.bets(third), plain.bets(wide), strict=True):
        assert of_narrow == pytest.approx(of_plain, rel=DIGITS)
    assert narrow.expected_growth(third, third, third) == pytest.approx(
        plain.expected_growth(wide, wide, wide), rel=DIGITS
    )
    budget = OneSample(third, times(2.0), [1.0], worse=True)
    same = OneSample(wide, times(2.0), [1.0], worse=True)
    assert budget.expected_growth(third) == pytest.approx(same.expected_growth(wide), rel=DIGITS)


def test_many_units_in_single_precision_are_not_lost() -> None:
    """Their sum is odd and over 2^24: single precision cannot hold it."""
    units = np.zeros(21, np.float32)
    units[0], units[20] = 2**24, 167_773
    narrow, plain = (two(0.01, times(2.0), memory=1e12) for _ in range(2))
    for _ in range(2):
        narrow.update(units, units, 0.5)
        plain.update(units.astype(np.float64), units.astype(np.float64), 0.5)
    assert narrow.log_e == pytest.approx(plain.log_e, rel=DIGITS)
    for of_narrow, of_plain in zip(narrow.bets(0.5), plain.bets(0.5), strict=True):
        assert of_narrow == pytest.approx(of_plain, rel=DIGITS)


def test_a_contrast_of_one_arm_counts_the_candidate() -> None:
    strata = Strata()
    clean = 7 * np.eye(21, dtype=np.int64)[0]
    strata.add(UnitGroup(0.5, candidate={"errors": clean}, champion={"errors": 0 * clean}))
    assert strata.contrast("errors").units == 7
    assert strata.contrast("errors").low is None
