"""Finds and ends the processes of a stack, also those that nobody supervises any more."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from serving.errors import ServingError

STACK_VARIABLE = "INTERLOCK_STACK"
"""Set to `run_dir` in every process of a stack, so that none of them can be lost from sight."""


def stack_processes(run_dir: Path) -> list[int]:
    """Pids of every process of this user that belongs to the stack, the caller and its parents excepted.

    Found by an environment variable that all of them inherit, so orphans are found too. Linux
    only; elsewhere the list is empty, and a supervisord that was killed leaves orphans behind.
    """
    mark = f"{STACK_VARIABLE}={run_dir}".encode()
    own = _own_line()
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name)
            if pid not in own and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def stop_processes(pids: list[int], *, wait_s: float) -> None:
    """SIGTERM, then SIGKILL for those that are still there after `wait_s`; returns when all are gone."""
    for number, patience_s in ((signal.SIGTERM, wait_s), (signal.SIGKILL, 5.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if wait_until(lambda: not any(is_alive(pid) for pid in pids), patience_s):
            return
    left = [pid for pid in pids if is_alive(pid)]
    raise ServingError(f"processes {left} did not end after SIGKILL. Next: look at them with ps")


def _own_line() -> set[int]:
    """The caller and its ancestors."""
    line = {os.getpid()}
    pid = os.getppid()
    while pid > 1 and pid not in line:
        line.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return line


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended but was not waited for (a zombie) does not."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return not Path("/proc/self").exists()


def wait_until(condition: Callable[[], bool], wait_s: float) -> bool:
    """Poll every 50 ms until `condition` holds; False when it did not within `wait_s`."""
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
