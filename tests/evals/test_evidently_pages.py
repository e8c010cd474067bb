"""Evidently's page on an evaluation: one for every task, of both versions, bounded in rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from configs.evaluation import Evaluation, Metric
from evals import evidently_pages
from evals.contest import Scores
from evals.evidently_pages import evaluation_page
from evals.metrics import Predictions

pytestmark = pytest.mark.slow  # importing Evidently takes seconds

RNG = np.random.default_rng(1)
ROWS = pd.DataFrame({"distance": RNG.normal(size=300), "carrier": RNG.choice(list("ab"), 300)})


def policy(task: str, metric: str) -> Evaluation:
    group = "query" if task == "ranking" else None
    return Evaluation(
        data="held-out.parquet", label="y", task=task, metrics=(Metric(name=metric),), group=group
    )


def page(task: str, metric: str, scores: Scores) -> str:
    made = evaluation_page(policy(task, metric), ROWS, scores)
    assert "<html" in made[:2000].lower()
    for column in ("distance", "carrier"):
        assert column in made
    return made


def test_numbers_are_shown_with_regressions_measures() -> None:
    labels = RNG.normal(size=300)
    scores = Scores(labels, Predictions(values=labels + 0.1), Predictions(values=labels + 0.2))
    assert "Mean Absolute Percentage Error: Reference" in page("regression", "mae", scores)


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_are_shown_with_classifications_measures(classes: int) -> None:
    labels = RNG.integers(0, classes, 300)
    wrong = np.where(np.arange(300) % 10 == 0, (labels + 1) % classes, labels)
    made = page(
        "classification", "accuracy", Scores(labels, Predictions(classes=labels), Predictions(classes=wrong))
    )
    assert "Accuracy" in made


def test_a_ranking_is_shown_by_its_columns_and_a_first_version_alone() -> None:
    labels = RNG.normal(size=300)
    made = page("ranking", "ndcg", Scores(labels, Predictions(values=labels)))
    assert "Absolute Percentage Error" not in made
    assert "Accuracy" not in made


def test_of_many_rows_the_same_ones_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidently_pages, "_ROWS_MAX", 50)
    drawn: list[pd.DataFrame] = []
    kept = evidently_pages._frame

    def frame(rows, scores, predictions, chosen):
        drawn.append(kept(rows, scores, predictions, chosen))
        return drawn[-1]

    monkeypatch.setattr(evidently_pages, "_frame", frame)
    labels = RNG.normal(size=300)
    scores = Scores(labels, Predictions(values=labels), digest="d")
    for _ in range(2):
        page("regression", "mae", scores)
    assert [len(one) for one in drawn] == [50, 50]
    assert drawn[0].equals(drawn[1])
