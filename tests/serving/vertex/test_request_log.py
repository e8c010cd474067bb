"""Rows of the request log as BigQuery has them, recorded by hand from the table's published schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from serving.endpoint import Slot
from serving.errors import Refused
from serving.vertex.request_log import read_exchanges
from serving.vertex.state import Deployed

CHAMPION = Deployed("1234567890", Slot.BLUE, "7")
NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def row(second: int, id_: str, request: list[str], response: list[str]) -> dict[str, Any]:
    return {
        "logging_time": NOON.replace(second=second),
        "request_id": id_,
        "request_payload": request,
        "response_payload": response,
    }


RECORDED = [
    row(1, "41", ['{"dataframe_split": {"columns": ["a"], "data": [[1]]}}'], ['{"predictions": [2]}']),
    row(1, "42", ["[1.0, 2.0]", "[3.0, 4.0]"], ["0.25", "0.75"]),
    row(3, "40", ["a,b\n1,2\n"], ["0.5"]),
]


class Recorded:
    """What the query's WHERE and ORDER BY leave of the recorded rows."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        self.asked: list[str] = []

    def after(
        self, deployed: str, since: float, last_id: str, *, until: float, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        self.asked.append(deployed)
        left = [
            one
            for one in self._rows
            if (one["logging_time"].timestamp(), one["request_id"]) > (since, last_id)
            and one["logging_time"].timestamp() <= until
        ]
        return left[:limit]


START = f"{NOON.timestamp()!r}|"
UNTIL = NOON.timestamp() + 60


def test_rows_become_exchanges_of_the_deployed_version() -> None:
    rows = Recorded(RECORDED)
    (whole, put_together, text), cursor = read_exchanges(rows, CHAMPION, START, until=UNTIL, limit=10)
    assert rows.asked == ["1234567890"]
    assert (whole.request_id, whole.version, whole.status) == ("41", "7", 200)
    assert json.loads(whole.request)["dataframe_split"]["data"] == [[1]]
    assert json.loads(whole.response) == {"predictions": [2]}
    assert json.loads(put_together.request) == {"instances": [[1.0, 2.0], [3.0, 4.0]]}
    assert json.loads(put_together.response) == {"predictions": [0.25, 0.75]}
    assert text.request == b"a,b\n1,2\n"
    assert read_exchanges(rows, CHAMPION, cursor, until=UNTIL, limit=10) == ([], cursor)


def test_two_rows_of_one_moment_are_read_once_each_however_small_the_pages() -> None:
    rows, cursor, seen = Recorded(RECORDED), START, []
    while True:
        found, after = read_exchanges(rows, CHAMPION, cursor, until=UNTIL, limit=1)
        if not found:
            break
        seen, cursor = [*seen, *(one.request_id for one in found)], after
    assert seen == ["41", "42", "40"]


def test_nothing_is_read_before_its_time() -> None:
    rows = Recorded(RECORDED)
    found, cursor = read_exchanges(rows, CHAMPION, START, until=NOON.timestamp() + 2, limit=10)
    assert [one.request_id for one in found] == ["41", "42"]
    assert read_exchanges(rows, CHAMPION, START, until=NOON.timestamp() - 1, limit=10) == ([], START)
    late, _ = read_exchanges(rows, CHAMPION, cursor, until=UNTIL, limit=10)
    assert [one.request_id for one in late] == ["40"]


def test_instances_that_are_no_json_are_refused_with_the_next_step() -> None:
    rows = Recorded([row(1, "1", ["a,b", "c,d"], ["1", "2"])])
    with pytest.raises(Refused, match=r"holds no JSON.*Next: "):
        read_exchanges(rows, CHAMPION, START, until=UNTIL, limit=10)
