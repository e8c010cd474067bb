"""Scorers through MLflow itself: what one returned counts, what it did not stays absent, all is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.genai import Example
from tasks.runs import Runs

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of its client and its database
def test_scores_come_back_whole_and_are_seen_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    runs = Runs(f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    parent = runs.open_run("support", "release-1", {})
    examples = [Example(f"{i}.0", {"prompt": f"question {i}"}, f"answer {i}", {}) for i in range(6)]

    def sometimes(key: str) -> float:
        if key == "4.0":
            raise ValueError("boom")
        return 1.0

    scores = runs.score(
        parent,
        "candidate 2",
        examples,
        {"whole": lambda key: float(key[0]), "sometimes": sometimes, "never": lambda key: 1 / 0},
    )
    assert scores.values["whole"] == {f"{i}.0": float(i) for i in range(6)}
    assert sorted(scores.values["sometimes"]) == ["0.0", "1.0", "2.0", "3.0", "5.0"]
    assert scores.values["never"] == {}
    assert scores.errors == {
        "sometimes": "ValueError: boom",
        "never": "ZeroDivisionError: division by zero",
    }
    client = runs._client
    children = client.search_runs(
        [client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    assert [child.info.run_name for child in children] == ["candidate 2"]
    metrics = children[0].data.metrics
    assert metrics["whole/mean"] == 2.5
    assert metrics["sometimes/mean"] == 1.0, "why the gate must count for itself: MLflow averages the rest"
    assert "never/mean" not in metrics
    traces = client.search_traces(
        locations=[client.get_run(parent).info.experiment_id], run_id=children[0].info.run_id
    )
    assert len(traces) == 6
    assert "answer" in json.dumps([trace.data.response for trace in traces])
