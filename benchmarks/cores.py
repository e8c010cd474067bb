"""Which core runs what, so that what is measured and what measures do not push each other about."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path


def pin(pid: int, cores: Collection[int]) -> None:
    """Keep every thread of a process on these cores; new threads and children inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


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


def _command(process: Path) -> str:
    return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
