"""Scores of labelled answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.labels import Labels
from evals.quality import by_badness, is_bad, is_proven_good, score
from evals.sequential import LEVELS


@pytest.mark.parametrize(
    ("policy", "prediction", "label", "expected"),
    [
        ({}, 0.7, 1, 1.0),
        ({}, 0.7, 0, 0.0),
        ({"threshold": 0.8}, 0.7, 1, 0.0),
        ({}, "cat", "cat", 1.0),
        ({}, "cat", "dog", 0.0),
        ({}, 3, "3", 1.0),
        ({}, None, 1, None),
        ({"metric": "brier"}, 0.8, 1, 0.96),
        ({"metric": "brier"}, 1.8, 1, None),
        ({"metric": "brier"}, "cat", 1, None),
        ({"metric": "absolute", "scale": 10}, 13, 10, 0.7),
        ({"metric": "absolute", "scale": 10}, 130, 10, 0.0),
        ({"metric": "absolute", "scale": 10}, float("nan"), 10, None),
    ],
)
def test_scores(policy: dict[str, Any], prediction: Any, label: Any, expected: float | None) -> None:
    found = score(Labels.model_validate(policy), prediction, label)
    assert found == (None if expected is None else pytest.approx(expected))


@given(st.lists(st.floats(0, 1), max_size=50))
def test_counts_by_badness_keep_the_mean(scores: list[float]) -> None:
    counts = by_badness(scores)
    assert sum(counts) == len(scores)
    assert abs(float(np.dot(counts, LEVELS)) - sum(1 - one for one in scores)) <= 0.0251 * len(scores)


def test_lots_keep_the_mean_and_are_shared_by_both_versions() -> None:
    keys = [f"request-{number}" for number in range(4000)]
    assert np.mean([is_bad(0.7, key) for key in keys]) == pytest.approx(0.3, abs=0.03)
    worse = [(is_bad(0.7, key), is_bad(0.9, key)) for key in keys]
    assert (False, True) not in worse, "who is better on a request is never drawn worse on it"
    assert not any(is_bad(1.0, key) for key in keys)
    assert all(is_bad(0.0, key) for key in keys)


def test_a_level_is_proven_only_by_enough_labels() -> None:
    assert not is_proven_good([], 0.8)
    assert not is_proven_good([1.0] * 20, 0.8)
    assert is_proven_good([1.0] * 30, 0.8)
    assert not is_proven_good([0.8] * 5000, 0.8)
    assert is_proven_good([0.85] * 5000, 0.8)


def test_a_proof_is_false_at_most_once_in_a_hundred() -> None:
    rng = np.random.default_rng(4)
    proven = [is_proven_good((rng.random(300) < 0.8).astype(float).tolist(), 0.8) for _ in range(2000)]
    assert np.mean(proven) < 0.02
