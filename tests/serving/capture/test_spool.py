"""The spool's reader: exact, in order, once each; follows growth, notices loss."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.capture.recorder import Recorded, Recorder, record_head, spool_line
from serving.capture.segments import SegmentWriter, list_segments, purge_segments
from serving.capture.spool import (
    CursorInvalid,
    lost_segments,
    newest_exchanges,
    read_exchanges,
    unread_bytes,
)
from tests.serving.capture.exchanges import record, recorder


def line(exchange: Recorded) -> bytes:
    return spool_line(exchange, record_head(exchange))


@pytest.fixture
def spooling(tmp_path: Path) -> Recorder:
    return recorder(tmp_path, captures_dir=None)


def offer(to: Recorder, *numbers: int) -> None:
    for number in numbers:
        to.offer(record(number))
    to.drain()


def ids(folder: Path, cursor: str, limit: int = 1000) -> tuple[list[str], str]:
    exchanges, cursor = read_exchanges(folder, cursor, limit)
    return [exchange.request_id for exchange in exchanges], cursor


def test_starts_at_now_and_follows(tmp_path: Path, spooling: Recorder) -> None:
    folder = tmp_path / "spool"
    offer(spooling, 1, 2)
    old, cursor = read_exchanges(folder, None, 10)
    assert old == []
    assert ids(folder, cursor)[0] == []
    offer(spooling, 3)
    offer(spooling, 4)
    found, later = ids(folder, cursor)
    assert found == ["r-3", "r-4"]
    assert ids(folder, cursor)[0] == found, "the same cursor gives the same again"
    assert ids(folder, later)[0] == []
    spooling.close()
    assert ids(folder, later)[0] == []


def test_the_newest_of_all_writers_are_found_from_the_end(tmp_path: Path) -> None:
    """Two writers of four segments each; the even requests are one's, the odd ones the other's."""
    folder = tmp_path / "spool"
    writers = [SegmentWriter(folder, name, bytes_max=1, seconds_max=60) for name in ("a", "b")]
    for number in range(8):
        writers[number % 2].write(line(record(number)), number)
    assert [one.request_id for one in newest_exchanges(folder, 3)] == ["r-5", "r-6", "r-7"]
    (first, *_) = list_segments(folder)
    (folder / first.filename).write_bytes(b"not read: three newer ones are enough\n")
    assert [one.request_id for one in newest_exchanges(folder, 3)] == ["r-5", "r-6", "r-7"]
    assert len(newest_exchanges(folder, 100)) == 7
    assert newest_exchanges(tmp_path / "none", 3) == []


def test_bytes_are_exact(tmp_path: Path) -> None:
    spooling = recorder(tmp_path)
    _, cursor = read_exchanges(tmp_path / "spool", None, 1)
    body = bytes(range(256)) + b'\n{"a": "\xe2\x82\xac"}\r\n'
    spooling.offer(record(1, request=body, response=body[::-1], content_type=b"text/csv", status=422))
    spooling.close()
    [exchange], _ = read_exchanges(tmp_path / "spool", cursor, 10)
    assert (exchange.request, exchange.response) == (body, body[::-1])
    assert (exchange.content_type, exchange.status, exchange.path) == ("text/csv", 422, "/invocations")
    assert (exchange.version, exchange.service_ms) == ("3", 2.5)


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("replays", {"replay": True}),
        ("requests past the gateway", {"request_id": b""}),
        ("clients that went away", {"status": 0}),
        ("refusals while loading or draining", {"status": 503}),
        ("bodies that were cut", {"truncated": True}),
    ],
)
def test_is_not_for_the_shadow(tmp_path: Path, what: str, values: dict[str, object]) -> None:
    spooling = recorder(tmp_path, captures_dir=None)
    _, cursor = read_exchanges(tmp_path / "spool", None, 1)
    spooling.offer(record(1, **values))
    spooling.offer(record(2))
    spooling.close()
    assert ids(tmp_path / "spool", cursor)[0] == ["r-2"], what


def test_a_record_that_cannot_be_written_is_lost_alone(tmp_path: Path) -> None:
    broken = (
        b'data: {"choices":[{"delta":{"content":["a"]}}]}\n\ndata: {"choices":[{"delta":{"content":"b"}}]}'
    )
    recording = recorder(tmp_path, measures_dir=tmp_path / "measures")
    _, cursor = read_exchanges(tmp_path / "spool", None, 1)
    for one in (record(1), record(2, response=broken), record(3)):
        recording.offer(one)
    recording.close()
    counts = recording.counts
    assert (counts.spooled, counts.captured, counts.measured, counts.dropped) == (2, 2, 2, 1)
    assert ids(tmp_path / "spool", cursor)[0] == ["r-1", "r-3"]


def test_a_limit_loses_nothing(tmp_path: Path, spooling: Recorder) -> None:
    folder = tmp_path / "spool"
    _, cursor = read_exchanges(folder, None, 1)
    offer(spooling, *range(25))
    assert unread_bytes(folder, cursor) > 0
    found: list[str] = []
    while True:
        some, cursor = ids(folder, cursor, limit=4)
        assert len(some) <= 4
        if not some:
            break
        found += some
    assert found == [f"r-{n}" for n in range(25)]
    assert unread_bytes(folder, cursor) == 0
    spooling.close()


def test_an_unfinished_line_waits(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spooling = recorder(tmp_path, captures_dir=None)
    offer(spooling, 1)
    _, cursor = read_exchanges(folder, None, 1)
    [path] = folder.iterdir()
    whole = path.read_bytes()
    line = whole.replace(b"r-1", b"r-2")
    with path.open("ab") as file:
        file.write(line[:50])
        file.flush()
        found, cursor = ids(folder, cursor)
        assert found == []
        file.write(line[50:])
    assert ids(folder, cursor)[0] == ["r-2"]
    spooling.close()


def test_starting_at_now_in_the_middle_of_a_line(tmp_path: Path, spooling: Recorder) -> None:
    folder = tmp_path / "spool"
    offer(spooling, 1)
    [path] = folder.iterdir()
    line = path.read_bytes().replace(b"r-1", b"r-2")
    with path.open("ab") as file:
        file.write(line[:50])
        file.flush()
        _, cursor = read_exchanges(folder, None, 1)
        file.write(line[50:])
    assert ids(folder, cursor)[0] == ["r-2"]
    spooling.close()


def test_segments_are_cut_and_followed_in_order(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w.1-1", bytes_max=200, seconds_max=5)
    _, cursor = read_exchanges(tmp_path, None, 1)
    for number in range(30):
        writer.write(line(record(number)), now=1_795_340_000 + number)
        writer.tick(1_795_340_000 + number)
    assert len(list_segments(tmp_path)) > 5
    found, cursor = ids(tmp_path, cursor)
    assert found == [f"r-{n}" for n in range(30)]
    writer.tick(1_795_340_100)
    assert ids(tmp_path, cursor)[0] == []
    assert lost_segments(cursor) == 0


def test_deleted_segments_count_as_lost_only_when_unread(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w.1-1", bytes_max=1, seconds_max=5)  # a segment a write
    _, cursor = read_exchanges(tmp_path, None, 1)
    for number in range(10):
        writer.write(line(record(number)), now=1000.0 + number)
    found, cursor = ids(tmp_path, cursor, limit=4)
    assert len(found) == 4
    assert purge_segments(tmp_path, opened_before=1007.0) == 7
    found, cursor = ids(tmp_path, cursor)
    assert found == ["r-7", "r-8", "r-9"]
    assert lost_segments(cursor) == 3
    purge_segments(tmp_path, opened_before=2000.0)
    assert ids(tmp_path, cursor)[0] == []
    writer.write(line(record(10)), now=1010.0)
    found, cursor = ids(tmp_path, cursor)
    assert found == ["r-10"]
    assert lost_segments(cursor) == 3


def test_a_writer_that_was_idle_until_its_files_were_gone_is_not_read_twice(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "w.1-1", bytes_max=1, seconds_max=5)
    writer.write(line(record(0)), now=1000.0)
    _, cursor = read_exchanges(tmp_path, None, 1)
    for _ in range(2):
        found, cursor = ids(tmp_path, cursor)
        assert found == []
    purge_segments(tmp_path, opened_before=2000.0)
    _, cursor = ids(tmp_path, cursor)
    writer.write(line(record(1)), now=3000.0)
    found, cursor = ids(tmp_path, cursor)
    assert found == ["r-1"]
    assert lost_segments(cursor) == 0


def test_the_writer_deletes_what_is_past_its_age_whoever_wrote_it(tmp_path: Path) -> None:
    dead = SegmentWriter(tmp_path, "dead.1-1", bytes_max=1000, seconds_max=5)
    dead.write(b'{"time":1}\n', now=1000.0)
    alive = SegmentWriter(tmp_path, "alive.1-1", bytes_max=1000, seconds_max=5, keep_s=900)
    alive.write(b'{"time":1}\n', now=1800.0)
    alive.tick(1899.0)
    assert len(list_segments(tmp_path)) == 2
    alive.tick(1901.0)
    assert [name.writer for name in list_segments(tmp_path)] == ["alive.1-1"]


def test_only_the_owner_may_read(tmp_path: Path, spooling: Recorder) -> None:
    old = os.umask(0)
    try:
        offer(spooling, 1)
    finally:
        os.umask(old)
    [path] = (tmp_path / "spool").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    spooling.close()


def test_a_foreign_cursor_is_refused(tmp_path: Path) -> None:
    for cursor in ("", "nonsense", json.dumps({"writers": {"w": 3}, "lost": 0}), "[]"):
        with pytest.raises(CursorInvalid, match="start again"):
            read_exchanges(tmp_path, cursor, 1)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["write", "rotate", "read"])), min_size=1, max_size=40
    ),
    limit=st.integers(1, 5),
)
def test_every_exchange_exactly_once_whatever_the_interleaving(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    writers = [SegmentWriter(folder, f"w{i}.1-1", bytes_max=700, seconds_max=5) for i in range(4)]
    _, cursor = read_exchanges(folder, None, 1)
    written: list[str] = []
    seen: list[str] = []
    for which, step in steps:
        if step == "write":
            number = len(written)
            writers[which].write(line(record(number)), now=1000.0 + number)
            written.append(f"r-{number}")
        elif step == "rotate":
            writers[which].rotate()
        else:
            found, cursor = ids(folder, cursor, limit)
            seen += found
    while True:
        found, cursor = ids(folder, cursor, limit)
        if not found:
            break
        seen += found
    assert sorted(seen) == sorted(written)
    assert lost_segments(cursor) == 0
