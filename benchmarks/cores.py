"""Which core runs what, so that what is measured is not pushed by what measures it, and how long it took."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def pin(pid: int, cores: Collection[int]) -> None:
    """Keep every thread of a process on these cores; new threads and children inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def cpu_s(pids: Collection[int]) -> float:
    """CPU seconds that processes have taken so far, all their threads together."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS


def family(pid: int) -> tuple[int, ...]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (pid, *(int(child) for child in children))


def find_server(port: int) -> int:
    """The process that a command line told to serve this port. Raises LookupError."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                words = _command(process).replace("=", " ").split()
                if ("--port", str(port)) in itertools.pairwise(words):
                    return int(process.name)
    raise LookupError(f"no process serves port {port}")


def find_children(title: str, parent: str) -> list[int]:
    """The processes whose title begins so, and whose parent's command line holds that text."""
    found: list[int] = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if _command(process).startswith(title):
                parent_pid = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if parent in _command(Path("/proc") / parent_pid):
                    found.append(int(process.name))
    return found


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _command(process: Path) -> str:
    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
