"""Reading the access log: positions, torn and strange lines, rotation, and what counts as a failure."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.endpoint import OBSERVATION_COLUMNS
from serving.errors import Refused
from serving.gateway.access_log import AccessLog

LINE = {
    "t0": "1795338357568302",
    "t1": "1795338357569976",
    "t2": "1795338357570976",
    "queue_ms": "0",
    "id": "a28827c1",
    "client_id": "-",
    "endpoint": "flights",
    "tenant": "acme",
    "user": "fd172bc6",
    "slot": "green",
    "served": "-",
    "version": "2",
    "generation": "17",
    "share": "5000",
    "bucket": "307",
    "replica": "replica-flights-green-28711",
    "status": "200",
    "retries": "0",
    "end": "----",
    "bytes_in": "203",
    "bytes_out": "476",
}


def line(**changes: str) -> str:
    return json.dumps({**LINE, **changes}, separators=(",", ":")) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text("")
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as log:
        log.write(text)


def row_of(path: Path, **changes: str) -> dict:
    path.write_text(line(**changes))
    part = AccessLog(path, "flights").read("0:0")
    assert part.malformed == 0
    (row,) = part.frame.to_dict("records")
    return row


def test_a_line_becomes_an_observation(path: Path) -> None:
    row = row_of(path)
    assert row == {
        "request_id": "a28827c1",
        "time": pytest.approx(1795338357.568302, abs=1e-6),
        "user": "fd172bc6",
        "tenant": "acme",
        "slot": "green",
        "version": "2",
        "generation": 17,
        "share": 0.5,
        "status": 200,
        "failed": False,
        "service_ms": pytest.approx(1.674),
        "total_ms": pytest.approx(2.674),
    }
    assert list(row) == list(OBSERVATION_COLUMNS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"failed": False}),
        ({"status": "404"}, {"failed": False, "status": 404}),
        ({"status": "400"}, {"failed": True, "status": 400}),
        ({"status": "400", "t1": "-"}, {"failed": False}),
        ({"status": "429"}, {"failed": True, "status": 429}),
        ({"status": "429", "t1": "-"}, {"failed": False}),
        ({"status": "500"}, {"failed": True}),
        ({"status": "504", "t1": "-", "end": "sH--"}, {"failed": True, "service_ms": 2.674}),
        ({"retries": "1"}, {"failed": True, "status": 200}),
        ({"retries": "+1"}, {"failed": True, "status": 200}),
        ({"served": "blue"}, {"failed": True, "slot": "green"}),
        ({"status": "-1", "t1": "-", "end": "CH--"}, {"failed": True, "status": 0}),
        ({"status": "400", "t1": "-", "end": "CH--"}, {"failed": True, "status": 0}),
        ({"status": "503", "t1": "-", "end": "CQ--", "queue_ms": "-1"}, {"failed": True, "status": 0}),
        ({"status": "200", "end": "CD--"}, {"failed": False, "status": 200}),
        ({"status": "200", "end": "cD--"}, {"failed": False, "status": 200}),
        ({"status": "200", "end": "SD--"}, {"failed": True, "status": 200}),
        ({"status": "200", "end": "sD--"}, {"failed": True, "status": 200}),
        ({"status": "200", "end": "SL--"}, {"failed": True, "status": 200}),
        ({"queue_ms": "1"}, {"service_ms": 0.674, "total_ms": 2.674}),
        ({"queue_ms": "50"}, {"service_ms": 0.0}),
        ({"user": "-"}, {"user": ""}),
        ({"t2": "1795338357568000", "t1": "1795338357568000"}, {"service_ms": 0.0, "total_ms": 0.0}),
    ],
)
def test_what_counts(path: Path, changes: dict[str, str], expected: dict[str, object]) -> None:
    row = row_of(path, **changes)
    for name, value in expected.items():
        assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_requests_without_an_assignment_are_left_out(path: Path) -> None:
    path.write_text(line(slot="-", version="-", status="401") + line(endpoint="-") + line(endpoint="other"))
    part = AccessLog(path, "flights").read("0:0")
    assert (len(part.frame), part.malformed) == (0, 0)
    assert list(part.frame.columns) == list(OBSERVATION_COLUMNS)


def test_none_starts_at_the_last_complete_line(path: Path) -> None:
    append(path, line(id="old") + line(id="torn")[:50])
    log = AccessLog(path, "flights")
    start = log.read(None)
    assert len(start.frame) == 0
    append(path, line(id="torn")[50:] + line(id="new"))
    part = log.read(start.cursor)
    assert list(part.frame["request_id"]) == ["torn", "new"]
    assert part.malformed == 0


def test_a_torn_line_waits(path: Path) -> None:
    log = AccessLog(path, "flights")
    cursor = log.read(None).cursor
    text = line(id="one") + line(id="two")
    seen: list[str] = []
    for at in range(0, len(text), 37):
        append(path, text[at : at + 37])
        part = log.read(cursor)
        seen += list(part.frame["request_id"])
        cursor = part.cursor
        assert part.malformed == 0
    assert seen == ["one", "two"]


def test_a_malformed_line_is_counted_and_costs_only_itself(path: Path) -> None:
    bad = line(id="bad").replace('"status":"200"', '"status":')
    path.write_text(
        line(id="one") + bad + "Proxy gateway stopped (cumulated conns: FE: 0).\n" + line(id="two")
    )
    part = AccessLog(path, "flights").read("0:0")
    assert list(part.frame["request_id"]) == ["one", "two"]
    assert part.malformed == 1


@given(st.text(max_size=80))
def test_no_client_id_can_forge_or_break_a_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("forged") / "access.log"
    path.write_text(line(client_id=text + '","status":"500') + line(id="next"))
    part = AccessLog(path, "flights").read("0:0")
    assert list(part.frame["request_id"]) == ["a28827c1", "next"]
    assert list(part.frame["status"]) == [200, 200]


def test_the_same_two_cursors_give_the_same_rows(path: Path) -> None:
    log = AccessLog(path, "flights")
    append(path, "".join(line(id=f"r{n}") for n in range(10)))
    first = log.read("0:0")
    append(path, "".join(line(id=f"s{n}") for n in range(10)))
    again = log.read("0:0", until=first.cursor)
    assert again.frame.equals(first.frame)
    assert again.cursor == first.cursor
    rest = log.read(first.cursor)
    assert list(rest.frame["request_id"]) == [f"s{n}" for n in range(10)]


def test_a_bounded_read_stops_at_a_chunk_and_goes_on_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway.access_log._CHUNK_BYTES", 3 * len(line(id="0")))
    append(path, "".join(line(id=str(number)) for number in range(8)))
    log, cursor, found, parts = AccessLog(path, "flights"), "0:0", [], 0
    while True:
        part = log.read(cursor, limit=2)
        if part.cursor == cursor:
            break
        assert len(part.frame) <= 3
        found += list(part.frame["request_id"])
        cursor, parts = part.cursor, parts + 1
    assert (found, parts) == ([str(number) for number in range(8)], 3)


def test_rotation_loses_nothing(path: Path) -> None:
    log = AccessLog(path, "flights")
    append(path, line(id="one"))
    cursor = log.read("0:0").cursor
    append(path, line(id="two"))
    path.rename(path.with_name("access.log.1"))
    append(path, line(id="three"))
    part = log.read(cursor)
    assert list(part.frame["request_id"]) == ["two", "three"]
    assert log.read(part.cursor).cursor == part.cursor
    assert len(log.read(part.cursor).frame) == 0


def test_a_log_that_was_cut_is_read_from_its_beginning(path: Path) -> None:
    log = AccessLog(path, "flights")
    append(path, line() * 5)
    cursor = log.read("0:0").cursor
    path.write_text(line(id="after"))
    assert list(log.read(cursor).frame["request_id"]) == ["after"]


def test_a_log_that_does_not_exist_yet_is_read_once_it_does(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, "flights")
    start = log.read(None)
    again = log.read(start.cursor)
    assert (len(again.frame), again.cursor) == (0, start.cursor)
    append(path, line(id="first"))
    assert list(log.read(again.cursor).frame["request_id"]) == ["first"]


@pytest.mark.parametrize("cursor", ["", "x", "1", "1:x", "a:1"])
def test_a_foreign_cursor_is_refused(path: Path, cursor: str) -> None:
    with pytest.raises(Refused, match="cursor"):
        AccessLog(path, "flights").read(cursor)


@pytest.mark.slow
def test_a_million_lines_take_seconds(path: Path) -> None:
    row_of(path)  # the first to read imports pandas, which takes longer than the lines
    path.write_text(line() * 100_000)
    begun = time.process_time()
    part = AccessLog(path, "flights").read("0:0")
    assert len(part.frame) == 100_000
    assert time.process_time() - begun < 3, "a tenth of a million, on a busy machine"
