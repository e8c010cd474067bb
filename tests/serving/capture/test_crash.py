"""Writers that are killed: what is lost, and that no half line is ever taken for a record."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.capture.spool import lost_segments, read_exchanges

pytestmark = pytest.mark.slow

WRITER = """
import os, sys, time
from pathlib import Path
from tests.serving.capture.exchanges import record, recorder
folder, name, per_second = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
writing = recorder(folder, replica=name)
newest = os.open(folder / f"{name}.newest", os.O_CREAT | os.O_WRONLY, 0o600)
number = 0
while True:
    now = time.time()
    writing.offer(record(number, time=now, request_id=f"{name}-{number}".encode()))
    os.pwrite(newest, b"%.6f" % now, 0)
    number += 1
    if number % 10 == 0:
        time.sleep(10 / per_second)
"""
ROOT = Path(__file__).parents[3]


def start(folder: Path, name: str, per_second: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), name, str(per_second)], cwd=ROOT)


def read_all(folder: Path, cursor: str) -> tuple[dict[str, list[int]], dict[str, float], str]:
    """Numbers by writer, and the time of each writer's last record."""
    numbers: dict[str, list[int]] = {}
    last: dict[str, float] = {}
    while True:
        exchanges, cursor = read_exchanges(folder, cursor, 5000)
        if not exchanges:
            return numbers, last, cursor
        for exchange in exchanges:
            name, _, number = exchange.request_id.rpartition("-")
            numbers.setdefault(name, []).append(int(number))
            last[name] = max(last.get(name, 0.0), exchange.time)


def test_eight_writers_killed_lose_less_than_a_second_and_tear_nothing(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    _, cursor = read_exchanges(spool, None, 1)
    writers = {f"w{i}": start(tmp_path, f"w{i}", 200) for i in range(8)}
    try:
        deadline = time.monotonic() + 120
        while len({path.name.split(".")[0] for path in spool.glob("*")}) < len(writers):
            assert time.monotonic() < deadline, "not every writer began"
            time.sleep(0.05)
        time.sleep(1.0)
        for process in writers.values():
            os.kill(process.pid, signal.SIGKILL)
    finally:
        for process in writers.values():
            process.kill()
            process.wait()
    numbers, last, cursor = read_all(spool, cursor)
    assert set(numbers) == set(writers)
    for name in writers:
        assert numbers[name] == list(range(len(numbers[name]))), "no hole, no double, in order"
        offered = float((tmp_path / f"{name}.newest").read_text())  # it may not have run for a while before
        assert offered - last[name] < 1.0
    assert lost_segments(cursor) == 0
    for path in (tmp_path / "captures" / "live").iterdir():
        lines = path.read_bytes().split(b"\n")
        for line in lines[:-1]:
            json.loads(line)
