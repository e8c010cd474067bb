"""Durable captures: bounded reads over Parquet and the live tail, compacted exactly once."""

import time
from pathlib import Path

import pytest

from serving.capture import reader
from serving.capture.reader import CAPTURE_COLUMNS, compact, count_captures, purge_captures, read_captures
from tests.serving.capture.exchanges import record, recorder

NOON = 1_795_348_800.0  # 2026-11-22T12:00 UTC
STEPS = ("_write_state", "_write_hour", "_recover")


def write(folder: Path, numbers: range, *, close: bool = True, **more: object) -> None:
    """Records at NOON, one a minute, by a replica of their own."""
    began = NOON + 60 * numbers.start
    writing = recorder(folder, clock=lambda: began, spool_dir=None, replica=f"r{numbers.start}")
    for number in numbers:
        writing.offer(record(number, time=NOON + 60 * number, **more))
    writing.drain() if not close else writing.close()


def ids(folder: Path, **more: object) -> list[str]:
    return list(read_captures(folder / "captures", **more)["request_id"])


def test_nothing_yet(tmp_path: Path) -> None:
    frame = read_captures(tmp_path / "captures")
    assert list(frame.columns) == list(CAPTURE_COLUMNS)
    assert len(frame) == 0
    assert compact(tmp_path / "captures").segments == 0
    assert purge_captures(tmp_path / "captures", before=NOON) == 0


def test_filters_and_types(tmp_path: Path) -> None:
    write(tmp_path, range(4))
    write(tmp_path, range(4, 6), version=b"4")
    write(tmp_path, range(6, 8), replay=True)
    assert ids(tmp_path) == [f"r-{n}" for n in range(6)]
    assert ids(tmp_path, since=NOON + 60, until=NOON + 180) == ["r-1", "r-2"]
    assert ids(tmp_path, versions=["4"]) == ["r-4", "r-5"]
    assert len(ids(tmp_path, with_replays=True)) == 8
    frame = read_captures(tmp_path / "captures")
    assert str(frame["status"].dtype) == "int16"
    assert frame["inputs"][0] == '{"inputs": {"n": [0]}}'


def test_the_sample_is_bounded_and_repeatable(tmp_path: Path) -> None:
    write(tmp_path, range(500))
    first = ids(tmp_path, limit=50, seed=1)
    assert len(first) == 50
    assert ids(tmp_path, limit=50, seed=1) == first
    assert max(int(name[2:]) for name in first) > 250, "drawn from all of the window, not from its start"


def test_the_sample_does_not_depend_on_files(tmp_path: Path) -> None:
    """A compaction between two looks must not draw other rows."""
    write(tmp_path, range(300))
    write(tmp_path, range(300, 500))
    before = ids(tmp_path, limit=60, seed=2)
    compact(tmp_path / "captures", now=time.time())
    assert ids(tmp_path, limit=60, seed=2) == before
    assert ids(tmp_path, limit=60, seed=3) != before


def test_every_request_is_as_likely_to_be_drawn(tmp_path: Path) -> None:
    write(tmp_path, range(200))
    drawn = [int(name[2:]) for seed in range(60) for name in ids(tmp_path, limit=20, seed=seed)]
    assert len(drawn) == 60 * 20
    halves = sum(number < 100 for number in drawn)
    assert abs(halves - 600) < 4 * (1200 * 0.25) ** 0.5, "within four standard deviations of a half"
    assert len(set(drawn)) > 190, "nobody is left out for ever"


def test_columns_and_statuses_are_chosen(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    write(tmp_path, range(5, 8), status=400)
    frame = read_captures(tmp_path / "captures", statuses=[400], columns=("status", "inputs"))
    assert list(frame.columns) == ["status", "inputs"]
    assert list(frame["status"]) == [400, 400, 400]


def test_everything_is_counted(tmp_path: Path) -> None:
    write(tmp_path, range(50))
    write(tmp_path, range(50, 57), status=400)
    write(tmp_path, range(57, 60), version=b"4")
    write(tmp_path, range(60, 70), replay=True)
    counts = count_captures(tmp_path / "captures").to_dict(orient="records")
    assert counts == [
        {"version": "3", "status": 200, "requests": 50},
        {"version": "3", "status": 400, "requests": 7},
        {"version": "4", "status": 200, "requests": 3},
    ]
    assert len(count_captures(tmp_path / "captures", until=NOON)) == 0


def test_compaction_keeps_every_record_and_splits_by_hour(tmp_path: Path) -> None:
    write(tmp_path, range(150))  # two and a half hours
    write(tmp_path, range(150, 160), close=False)  # still open
    before = read_captures(tmp_path / "captures")
    done = compact(tmp_path / "captures", now=time.time())
    assert done.rows == 150
    assert [path.parent.name for path in done.files] == [f"hour=2026-11-22T{h}" for h in (12, 13, 14)]
    assert len(list((tmp_path / "captures" / "live").iterdir())) == 1, "the open segment stays"
    assert read_captures(tmp_path / "captures").equals(before)
    assert compact(tmp_path / "captures", now=time.time()).segments == 0


def test_a_segment_of_a_dead_writer_is_compacted_without_its_torn_line(tmp_path: Path) -> None:
    write(tmp_path, range(3), close=False)
    [path] = (tmp_path / "captures" / "live").iterdir()
    with path.open("ab") as file:
        file.write(b'{"time":1795348999.0,"request_id":"torn')
    assert compact(tmp_path / "captures", now=path.stat().st_mtime + 1).segments == 0
    assert compact(tmp_path / "captures", now=path.stat().st_mtime + 3600).rows == 3
    assert ids(tmp_path) == ["r-0", "r-1", "r-2"]


class Killed(BaseException):
    """Stands for a kill: nothing of ours may catch it."""


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("occurrence", [1, 2])
def test_killed_anywhere_every_record_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, moment: str, occurrence: int
) -> None:
    write(tmp_path, range(100))
    original = getattr(reader, step)
    calls = []

    def killed(*args: object) -> None:
        calls.append(1)
        if len(calls) == occurrence and moment == "before":
            raise Killed
        original(*args)
        if len(calls) == occurrence:
            raise Killed

    monkeypatch.setattr(reader, step, killed)
    with pytest.raises(Killed):
        compact(tmp_path / "captures", now=time.time())
    monkeypatch.undo()
    expected = sorted(f"r-{n}" for n in range(100))
    assert sorted(ids(tmp_path)) == expected, "right after the kill"
    compact(tmp_path / "captures", now=time.time())
    assert sorted(ids(tmp_path)) == expected, "after the next compaction"
    assert not (tmp_path / "captures" / "compaction.json").exists()
    assert not list((tmp_path / "captures" / "live").iterdir())


def test_retention_deletes_whole_hours(tmp_path: Path) -> None:
    write(tmp_path, range(150))
    compact(tmp_path / "captures", now=time.time())
    assert purge_captures(tmp_path / "captures", before=NOON + 3600 + 1) == 1
    assert ids(tmp_path) == [f"r-{n}" for n in range(60, 150)]
    assert purge_captures(tmp_path / "captures", before=NOON + 3 * 3600) == 2
    assert ids(tmp_path) == []
