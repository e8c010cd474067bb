"""What people read beside the e-values: rates, their difference and its interval, to the digit."""

from __future__ import annotations

import math

import pytest

from evals.contrast import Contrast, Strata
from evals.looks import UnitGroup

from .streams import group


def width(units: float) -> float:
    """The confidence sequence of Waudby-Smith et al. (arXiv:2103.06476), tuned to 500 units, at 95%."""
    scaled = units / 500
    return math.sqrt((1 + 1 / scaled) * math.log((scaled + 1) / 0.05**2))


def test_without_units_there_is_nothing_to_tell() -> None:
    strata = Strata()
    assert strata.contrast("errors") == Contrast(0, None, None, None, None, None)
    assert strata.units("errors") == (0, 0)
    assert strata.contrast("errors").text == "one version has no units yet"


def test_one_arm_alone_has_a_rate_and_no_difference() -> None:
    for arms, rates in (((3, 1), (0, 0)), (0.25, None)), (((0, 0), (8, 2)), (None, 0.2)):
        strata = Strata()
        strata.add(group(0.1, {"errors": arms[0]}, {"errors": arms[1]}))
        contrast = strata.contrast("errors")
        assert (contrast.candidate, contrast.champion) == rates
        assert (contrast.low, contrast.high, contrast.difference) == (None, None, None)
        assert contrast.text == "one version has no units yet"


def test_the_interval_of_one_stratum() -> None:
    strata = Strata()
    strata.add(group(0.25, {"errors": (90, 10)}, {"errors": (285, 15)}))
    contrast = strata.contrast("errors")
    variances = [
        ((bad + 0.5) / (n + 1) - ((bad + 0.5) / (n + 1)) ** 2) / n for bad, n in ((10, 100), (15, 300))
    ]
    half = math.sqrt(sum(variances)) * width(100)
    assert contrast.units == 100
    assert contrast.difference == pytest.approx(0.05)
    assert contrast.low == pytest.approx(0.05 - half, rel=1e-12)
    assert contrast.high == pytest.approx(0.05 + half, rel=1e-12)
    points = f"{100 * (0.05 - half):+.1f} to {100 * (0.05 + half):+.1f} points"
    assert contrast.text == f"candidate 10.00% against champion 5.00% ({points}, 95% at every look)"


def test_strata_are_averaged_with_the_candidates_units_and_those_with_one_arm_left_out() -> None:
    strata = Strata()
    strata.add(group(0.25, {"errors": (90, 10)}, {"errors": (285, 15)}))
    strata.add(group(0.5, {"errors": (280, 20)}, {"errors": (188, 12)}))
    strata.add(group(0.75, {"errors": (0, 0)}, {"errors": (0, 40)}))
    strata.add(group(0.9, {"errors": (30, 0)}, {"errors": (0, 0)}))
    contrast = strata.contrast("errors")
    shares = 100 / 400, 300 / 400
    difference = shares[0] * (0.1 - 0.05) + shares[1] * (20 / 300 - 12 / 200)
    variance = 0.0
    for share, arms in zip(shares, (((10, 100), (15, 300)), ((20, 300), (12, 200))), strict=True):
        for bad, n in arms:
            rate = (bad + 0.5) / (n + 1)
            variance += share**2 * (rate - rate**2) / n
    half = math.sqrt(variance) * width(400)
    assert contrast.difference == pytest.approx(difference, rel=1e-12)
    assert contrast.low == pytest.approx(difference - half, rel=1e-12)
    assert contrast.high == pytest.approx(difference + half, rel=1e-12)
    assert strata.units("errors") == (430, 540)
    assert contrast.units == 430
    assert contrast.candidate == pytest.approx(30 / 430)
    assert contrast.champion == pytest.approx(67 / 540)


def test_levels_between_are_means_with_their_own_variance() -> None:
    """Half-bad units: the mean is a half and nothing varies but what the smoothing adds."""
    half_bad = tuple(20 if level == 10 else 0 for level in range(21))
    strata = Strata()
    strata.add(UnitGroup(0.5, 20, 20, {"errors": half_bad}, {"errors": half_bad}))
    contrast = strata.contrast("errors")
    variance = 2 * ((5 + 0.5) / 21 - ((10 + 0.5) / 21) ** 2) / 20
    assert contrast.candidate == contrast.champion == 0.5
    assert contrast.high == pytest.approx(math.sqrt(variance) * width(20), rel=1e-12)


def test_bounds_are_differences_of_rates() -> None:
    strata = Strata()
    strata.add(group(0.5, {"errors": (0, 1)}, {"errors": (1, 0)}))
    contrast = strata.contrast("errors")
    assert (contrast.difference, contrast.high) == (1.0, 1.0)
    strata = Strata()
    strata.add(group(0.5, {"errors": (1, 0)}, {"errors": (0, 1)}))
    contrast = strata.contrast("errors")
    assert (contrast.difference, contrast.low) == (-1.0, -1.0)


def test_metrics_are_kept_apart() -> None:
    strata = Strata()
    strata.add(group(0.5, {"errors": (3, 1), "other": (1, 1)}, {"errors": (4, 0), "other": (1, 3)}))
    strata.add(group(0.5, {"errors": (3, 1)}, {"errors": (4, 0)}))
    assert strata.units("errors") == (8, 8)
    assert strata.units("other") == (2, 4)
    assert strata.contrast("other").champion == 0.75
