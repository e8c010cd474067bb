"""Captured bodies as a table: one row a predicted row, with the version's answer beside its inputs.

Bodies were accepted by a model server already; what cannot be read here (tensors, chats, other
protocols) is counted and left out, never guessed.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from serving.capture.reader import stream_captures

if TYPE_CHECKING:
    import pandas as pd

PREDICTION = "prediction"
"""The answer's column; answers of several parts get one column each: `prediction.0`, `prediction.late`."""

ROWS_OF_ONE_REQUEST_MAX = 50
"""One nightly batch of a hundred thousand rows is one request; it must not become the window."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CaptureTable:
    """Rows of a sample of requests. `unread` requests had bodies that are no table."""

    frame: pd.DataFrame
    requests: int
    unread: int


def sample_table(
    folder: Path,
    *,
    since: float,
    until: float,
    versions: Sequence[str] | None = None,
    requests: int,
    seed: int = 0,
) -> CaptureTable:
    """A seeded sample of at most `requests` answered requests of a window, as rows.

    Memory is bounded by the sample: bodies are read one by one, and at most
    `ROWS_OF_ONE_REQUEST_MAX` rows of each are kept, evenly spaced.
    """
    import pandas as pd

    rows: list[Row] = []
    read = unread = 0
    for content_type, inputs, outputs in stream_captures(
        folder,
        since=since,
        until=until,
        versions=versions,
        statuses=[200],
        limit=requests,
        seed=seed,
        columns=("content_type", "inputs", "outputs"),
    ):
        read += 1
        found = rows_of(inputs or "", content_type or "")
        if found is None:
            unread += 1
        else:
            rows += _thin(with_predictions(found, outputs or ""))
    return CaptureTable(pd.DataFrame(rows), read, unread)


def rows_of(body: str, content_type: str) -> list[Row] | None:
    """The named rows of a request in any form of MLflow's scoring protocol; None where it has none."""
    try:
        if content_type.partition(";")[0].strip().lower() == "text/csv":
            return list(csv.DictReader(io.StringIO(body)))
        document: Any = json.loads(body)
        split = document.get("dataframe_split")
        if split is not None:
            names = [str(name) for name in split["columns"]]
            return [dict(zip(names, row, strict=True)) for row in split["data"]]
        for key in ("dataframe_records", "instances", "inputs"):
            if key in document:
                return _rows(document[key])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error):
        return None
    return None


def with_predictions(rows: list[Row], body: str) -> list[Row]:
    """The rows with their answers, where the response has one for each; unchanged otherwise."""
    answers = answers_of(body)
    if answers is None or len(answers) != len(rows):
        return rows
    return [row | answer for row, answer in zip(rows, answers, strict=True)]


def answers_of(body: str) -> list[Row] | None:
    """The answers of a response, one a row, named as columns; None where it has none."""
    try:
        answers: Any = json.loads(body)["predictions"]
        if isinstance(answers, dict):
            answers = _rows(answers)
        if not isinstance(answers, list):
            return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return [_named(PREDICTION, answer) for answer in cast("list[Any]", answers)]


def _rows(data: Any) -> list[Row] | None:
    """A list of records, or columns of equal length; None for rows without names."""
    if isinstance(data, dict):
        columns = cast("dict[str, Any]", data)
        if not all(isinstance(values, list) for values in columns.values()):
            return None
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if isinstance(data, list) and all(isinstance(row, dict) for row in cast("list[Any]", data)):
        return cast("list[Row]", data)
    return None


def _named(name: str, value: Any) -> Row:
    if isinstance(value, dict):
        parts = cast("dict[Any, Any]", value).items()
    elif isinstance(value, list):
        parts = enumerate(cast("list[Any]", value))
    else:
        return {name: value}
    return {f"{name}.{key}": part for key, part in parts if not isinstance(part, dict | list)}


def _thin(rows: list[Row]) -> list[Row]:
    if len(rows) <= ROWS_OF_ONE_REQUEST_MAX:
        return rows
    step = len(rows) / ROWS_OF_ONE_REQUEST_MAX
    return [rows[int(index * step)] for index in range(ROWS_OF_ONE_REQUEST_MAX)]
