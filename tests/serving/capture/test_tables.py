"""Captured bodies become rows, in every form of the protocol, and within bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.capture.tables import ROWS_OF_ONE_REQUEST_MAX, rows_of, sample_table, with_predictions
from tests.serving.capture.exchanges import record, recorder

NOON = 1_795_348_800.0
ROWS = [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_records": ROWS},
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [None, "y"]], "index": [0, 1]}},
        {"instances": ROWS},
        {"inputs": ROWS},
        {"inputs": {"a": [1, None], "b": ["x", "y"]}},
    ],
    ids=str,
)
def test_every_form_gives_the_same_rows(document: dict) -> None:
    assert rows_of(json.dumps(document), "application/json; charset=utf-8") == ROWS


def test_csv() -> None:
    assert rows_of("a,b\n1,x\n,y\n", "text/csv") == [{"a": "1", "b": "x"}, {"a": "", "b": "y"}]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no json",
        "[1]",
        '{"inputs": [[1, 2]]}',
        '{"inputs": {"a": 1}}',
        '{"messages": []}',
        '{"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}',
        '{"inputs": {"a": [1], "b": [1, 2]}}',
    ],
)
def test_what_is_no_table_is_none(body: str) -> None:
    assert rows_of(body, "application/json") is None


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        ({"predictions": [0.5, 0.6]}, {"prediction": 0.5}),
        ({"predictions": [[0.1, 0.9], [0.2, 0.8]]}, {"prediction.0": 0.1, "prediction.1": 0.9}),
        ({"predictions": [{"late": 0.5}, {"late": 1}]}, {"prediction.late": 0.5}),
        ({"predictions": {"late": [0.5, 1]}}, {"prediction.late": 0.5}),
        ({"predictions": [0.5]}, {}),
        ({"error": "x"}, {}),
        ([1, 2], {}),
    ],
    ids=str,
)
def test_predictions_stand_beside_their_rows(answer: object, first: dict) -> None:
    assert with_predictions(ROWS, json.dumps(answer))[0] == ROWS[0] | first


def write(folder: Path, requests: int, *, rows: int = 1, **more: object) -> None:
    writing = recorder(folder, clock=lambda: NOON, spool_dir=None, replica=f"r{len(list(folder.rglob('*')))}")
    for number in range(requests):
        body = json.dumps({"inputs": {"n": [number] * rows}})
        answer = json.dumps({"predictions": [number / 10] * rows})
        values = {"time": NOON + number, "request": body.encode(), "response": answer.encode()}
        writing.offer(record(number, **(values | more)))
    writing.close()


def test_the_window_becomes_a_table_of_answered_requests(tmp_path: Path) -> None:
    write(tmp_path, 100, rows=2)
    write(tmp_path, 5, status=400)
    write(tmp_path, 5, request=b"{}")
    write(tmp_path, 5, replay=True)
    table = sample_table(tmp_path / "captures", since=NOON, until=NOON + 50, requests=1000)
    assert (len(table.frame), table.requests, table.unread) == (100, 55, 5)
    assert table.frame["prediction"].tolist() == (table.frame["n"] / 10).tolist()


def test_the_sample_is_bounded_in_requests_and_in_rows_of_one(tmp_path: Path) -> None:
    write(tmp_path, 300)
    assert len(sample_table(tmp_path / "captures", since=NOON, until=NOON + 300, requests=40).frame) == 40
    write(tmp_path, 1, rows=5000, time=NOON + 400)
    batch = sample_table(tmp_path / "captures", since=NOON + 400, until=NOON + 401, requests=40)
    assert len(batch.frame) == ROWS_OF_ONE_REQUEST_MAX
