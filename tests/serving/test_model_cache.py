"""Local copies are fetched once, half ones are cleaned up, old ones swept; no network."""

from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.model_cache import fetch_once, sweep_models

NOW = 1_800_000_000.0
DAY = 86_400.0


def put(folder: Path, *, age_s: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "weights").write_text("12345")
    os.utime(folder, (NOW - age_s, NOW - age_s))
    return folder


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_replicas_that_start_together_fetch_once(tmp_path: Path) -> None:
    barrier, asked = threading.Barrier(4), []

    def download(into: Path) -> str:
        asked.append(into)
        with (tmp_path / ".weights-1.lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever comes now waits
        (into / "llama").mkdir()
        return str(into / "llama")

    def start(_: int) -> Path:
        barrier.wait()
        return fetch_once(tmp_path, "weights-1", download)

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(start, range(4))) == {tmp_path / "weights-1"}
    assert len(asked) == 1
    assert names(tmp_path) == ["weights-1"]


def test_what_a_killed_process_had_fetched_goes_before_the_next_fetch(tmp_path: Path) -> None:
    put(tmp_path / ".incoming-weights-1", age_s=0)

    def download(into: Path) -> str:
        assert list(into.iterdir()) == []
        (into / "llama").mkdir()
        return str(into / "llama")

    assert fetch_once(tmp_path, "weights-1", download).is_dir()
    assert names(tmp_path) == ["weights-1"]


def test_copies_that_no_slot_holds_go_after_their_time(tmp_path: Path) -> None:
    held, used = put(tmp_path / "m-1", age_s=90 * DAY), put(tmp_path / "m-2", age_s=DAY)
    put(tmp_path / "m-3", age_s=90 * DAY)
    put(tmp_path / ".incoming-m-4", age_s=90 * DAY)
    put(tmp_path / ".outgoing-m-5", age_s=0)
    (tmp_path / ".note.json").write_text("{}")
    swept = sweep_models(tmp_path, held={"m-1"}, before=NOW - 14 * DAY, now=NOW)
    assert swept.names == (".incoming-m-4", "m-3")
    assert swept.size == 15
    assert names(tmp_path) == ["m-1", "m-2"]
    assert held.stat().st_mtime == NOW, "the time begins when no slot holds it any more"
    assert used.stat().st_mtime == NOW - DAY
    assert (tmp_path / ".note.json").exists()
    assert sweep_models(tmp_path / "nowhere", held=(), before=NOW, now=NOW).names == ()


def test_a_copy_that_is_opened_just_now_stays(tmp_path: Path) -> None:
    old = put(tmp_path / "m-1", age_s=9000 * DAY)
    with (tmp_path / ".m-1.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sweep_models(tmp_path, held=(), before=NOW - DAY, now=NOW).names == ()
    assert fetch_once(tmp_path, "m-1", lambda _: pytest.fail("it is there")) == old
    assert sweep_models(tmp_path, held=(), before=NOW - 5000 * DAY, now=NOW).names == ()
    assert (old / "weights").exists()
