"""Files that nobody ever reads half of, and locks that a stopped holder cannot keep for ever."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Generator
from pathlib import Path

_POLL_S = 0.002


def write_private(path: Path, text: str, *, lasting: bool = False) -> None:
    """Replace a file whole, mode 0600, creating its folder (0700).

    `lasting` waits until it is on the disk, for what nothing else knows (a revoked key). The rest is not
    synced: the journal is the truth, and `reconcile` writes it again after a power cut.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(text)
        if lasting:
            handle.flush()
            os.fsync(handle.fileno())
    fresh.replace(path)
    if lasting:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def timed_lock(path: Path, *, wait_s: float) -> Generator[bool]:
    """Hold a lock file across processes and threads; yields False where it was not had in time.

    The lock is advisory order, not safety: whoever waits for a rollback must not be blocked by
    a process that was stopped while it held the lock. Safety comes from the generations.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _locked_before(descriptor, deadline)
    finally:
        os.close(descriptor)


def _locked_before(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        else:
            return True
