"""Measuring drift: what alarms, what does not, and how often by chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from configs.drift import Drift
from evals.drift import (
    Check,
    Compared,
    Question,
    benjamini_hochberg,
    compare,
    decide_flags,
    enough,
    report_page,
)
from evals.drift_measures import as_categories, category_p_value, excess_p_value

POLICY = Drift()


def rows(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "temp": rng.normal(60, 10, count),
            "delay": rng.lognormal(1, 1, count),
            "carrier": rng.choice(list("abcdef"), count, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05]),
            "many": rng.choice([f"k{i}" for i in range(400)], count),
            "weekend": rng.random(count) < 0.3,
            "prediction": rng.beta(2, 5, count),
        }
    )


def flagged(compared: Compared) -> set[str]:
    return {check.key for check in compared.flagged}


def test_benjamini_hochberg_by_hand() -> None:
    p_values = [0.039, 0.001, 0.041, 0.008, 0.27]
    assert benjamini_hochberg(p_values, 0.05).tolist() == [False, True, False, True, False]
    assert benjamini_hochberg([0.01, 0.02, 0.03, 0.04, 0.05], 0.05).all(), "the largest rank decides"
    assert benjamini_hochberg([], 0.05).tolist() == []


def test_a_flag_needs_effect_and_significance() -> None:
    def one(effect: float, p_value: float | None) -> bool:
        check = Check(Question.INPUT, "a", "d", effect, 0.1, 1000, p_value)
        return decide_flags([check], 0.01)[0].flagged

    assert one(0.2, 1e-9)
    assert not one(0.05, 1e-300), "a large sample makes everything significant"
    assert not one(0.9, 0.02), "a small one makes everything distant"
    assert one(0.2, None), "certain"


def test_excess_needs_more_than_the_budget() -> None:
    assert excess_p_value(200, 1000, 10, 1000, 0.05) < 1e-9
    assert excess_p_value(60, 1000, 10, 1000, 0.05) > 0.3
    assert excess_p_value(0, 1000, 0, 1000, 0.05) > 0.99


def test_two_samples_of_many_categories_are_not_significant() -> None:
    """Evidently's chi-square, which takes the reference as exact, flags most of these."""
    rng = np.random.default_rng(3)
    names = [f"k{i}" for i in range(50)]
    found = [
        category_p_value(pd.Series(rng.choice(names, 1000)), pd.Series(rng.choice(names, 1000)))
        for _ in range(200)
    ]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.10
    assert category_p_value(pd.Series(["a"] * 500), pd.Series(["b"] * 500)) < 1e-9
    assert category_p_value(pd.Series(["a"] * 500), pd.Series(["a"] * 500)) == 1.0


def test_categories_are_the_same_as_numbers_and_as_texts() -> None:
    assert as_categories(pd.Series([1, 0])).tolist() == as_categories(pd.Series([1.0, 0.0])).tolist()
    assert as_categories(pd.Series(["", None, "x"])).isna().tolist() == [True, True, False]


def test_small_windows_are_not_judged() -> None:
    assert enough(POLICY, 5000, 999) == "999 rows in the window, drift.min_rows wants 1000"
    assert enough(POLICY, 999, 5000).startswith("999 rows in the reference")
    assert enough(POLICY, 1000, 1000) == ""


@pytest.mark.slow
def test_without_drift_nothing_is_flagged() -> None:
    """60 windows of 1,000 rows with 6 columns each, at a rate of 1%: at most two flagged windows."""
    reference = rows(5000, 0)
    alarms = [flagged(compare(POLICY, reference, rows(1000, seed))) for seed in range(1, 61)]
    assert sum(bool(found) for found in alarms) <= 2, alarms


@pytest.mark.slow
def test_each_kind_of_drift_is_found_and_named() -> None:
    reference, window = rows(5000, 0), rows(5000, 1)
    rng = np.random.default_rng(5)
    window["temp"] += 3
    window["carrier"] = np.where(rng.random(5000) < 0.3, "a", window["carrier"])
    window["prediction"] = rng.beta(3, 5, 5000)
    compared = compare(POLICY, reference, window)
    assert flagged(compared) == {"input/temp", "input/carrier", "output/prediction"}
    temp = next(check for check in compared.flagged if check.column == "temp")
    assert temp.effect == pytest.approx(0.3, abs=0.05)
    assert temp.p_value is not None
    assert temp.p_value < 1e-20


@pytest.mark.slow
def test_a_shift_that_does_not_matter_is_not_flagged_on_a_large_window() -> None:
    reference, window = rows(50_000, 0), rows(50_000, 1)
    window["temp"] += 0.5  # a twentieth of a standard deviation
    compared = compare(POLICY, reference, window)
    assert flagged(compared) == set()
    temp = next(check for check in compared.checks if check.key == "input/temp")
    assert temp.p_value is not None
    assert temp.p_value < 1e-6, "it is significant all the same"


@pytest.mark.slow
def test_broken_data_is_told_from_drift() -> None:
    reference, window = rows(3000, 0), rows(3000, 1)
    window["temp"] = window["temp"].where(np.arange(3000) % 5 > 0)
    window["delay"] = "n/a"
    window = window.drop(columns="weekend").assign(extra=1)
    compared = compare(POLICY, reference, window, refused=900, requests=10_000)
    assert flagged(compared) >= {"nulls/temp", "schema/delay", "schema/weekend", "refused/requests"}
    assert "input/temp" not in flagged(compared), "what is left of it is as it was"
    assert "columns that the reference lacks: extra" in compared.notes


@pytest.mark.slow
def test_new_categories_and_ranges_are_drift_and_have_budgets() -> None:
    reference, window = rows(3000, 0), rows(3000, 1)
    new = np.arange(3000) % 10 == 0
    window.loc[new, "carrier"] = "zz"
    window.loc[new, "temp"] = 400.0
    assert flagged(compare(POLICY, reference, window)) >= {"new categories/carrier", "out of range/temp"}
    rare = rows(3000, 1)
    rare.loc[np.arange(3000) % 100 == 0, "carrier"] = "zz"
    assert flagged(compare(POLICY, reference, rare)) == set(), "1% is within the budget of 5%"


@pytest.mark.slow
def test_drift_of_one_slice_shows_only_there() -> None:
    reference, window = rows(20_000, 0), rows(20_000, 1)
    window.loc[window["carrier"] == "c", "temp"] += 8
    policy = Drift(slices=("carrier",))
    found = flagged(compare(policy, reference, window))
    assert "input/temp/carrier=c" in found
    assert not any(key.startswith("input/temp/carrier=") for key in found - {"input/temp/carrier=c"})
    small = compare(policy, reference, window.head(6000))
    assert any(note.startswith("too few rows for slices of carrier") for note in small.notes)


@pytest.mark.slow
def test_every_slice_that_is_frequent_enough_is_compared_and_a_missing_column_is_said() -> None:
    even = rows(6000, 0).assign(carrier=["a", "b"] * 3000)
    compared = compare(Drift(slices=("carrier", "airport")), even, even)
    assert {check.part for check in compared.checks} == {"", "carrier=a", "carrier=b"}
    assert compared.notes == ("no slices by airport: the reference or the window lacks it",)


@pytest.mark.slow
def test_without_answers_on_both_sides_inputs_alone_are_compared() -> None:
    reference = rows(1500, 0)
    compared = compare(POLICY, reference.drop(columns="prediction"), reference)
    assert "answers are not compared: the reference or the window has none" in compared.notes
    assert "output/prediction" not in {check.key for check in compared.checks}


@pytest.mark.slow
def test_a_column_has_the_threshold_that_the_policy_gives_it_by_name() -> None:
    reference, window = rows(3000, 0), rows(3000, 1)
    window["temp"] += 3
    bearing = Drift.model_validate({"thresholds": {"columns": {"temp": 2.0}}})
    assert "input/temp" in flagged(compare(POLICY, reference, window))
    compared = compare(bearing, reference, window)
    assert "input/temp" not in flagged(compared)
    (told,) = [check.as_dict() for check in compared.checks if check.key == "input/temp"]
    assert (told["threshold"], told["column"]) == (2.0, "temp")


@pytest.mark.slow
def test_a_column_without_a_value_in_the_window_is_missing_and_nothing_else() -> None:
    reference, window = rows(1500, 0), rows(1500, 1)
    empty = window.assign(temp=np.nan, carrier=None)
    found = compare(POLICY, reference, empty)
    assert flagged(found) == {"nulls/temp", "nulls/carrier"}
    nothing = reference[["temp"]].assign(temp=np.nan)
    assert [check.key for check in compare(POLICY, nothing, nothing).checks] == ["nulls/temp"]


@pytest.mark.slow
def test_the_old_versions_answers_are_compared_where_the_policy_has_a_budget() -> None:
    reference, window, old = rows(3000, 0), rows(3000, 1), rows(3000, 2)
    window["prediction"] = window["prediction"] + 0.2
    policy = Drift.model_validate({"budgets": {"outputs": 0.5}})
    compared = compare(policy, reference, window, versions=(old, window))
    assert "new against old version/prediction" in flagged(compared)
    without = compare(POLICY, reference, window, versions=(old, window))
    assert not any("old version" in check.key for check in without.checks)


@pytest.mark.slow
def test_where_everything_is_refused_only_that_is_said() -> None:
    compared = compare(POLICY, rows(1500, 0), rows(10, 1).iloc[:0], refused=5000, requests=5000)
    assert [check.key for check in compared.checks] == ["refused/requests"]
    assert flagged(compared) == {"refused/requests"}


@pytest.mark.slow
def test_columns_that_name_rows_or_are_ignored_are_left_out() -> None:
    reference, window = rows(2000, 0), rows(2000, 1)
    reference["id"] = [f"a{i}" for i in range(2000)]
    window["id"] = [f"b{i}" for i in range(2000)]
    window["delay"] *= 3
    compared = compare(Drift(ignore=("delay",)), reference, window)
    assert flagged(compared) == set()
    assert any(note.startswith("id names rows") for note in compared.notes)


@pytest.mark.slow
def test_the_report_is_evidentlys_page() -> None:
    page = report_page(POLICY, rows(1500, 0), rows(1500, 1))
    assert page.lstrip().lower().startswith("<!doctype html>") or "<html" in page[:2000].lower()
    assert "carrier" in page
