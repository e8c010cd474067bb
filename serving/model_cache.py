"""The local copies of models and weights: each fetched once, however many replicas start, and swept when old.

A copy's name never changes its content. Its folder's time says when it was last asked for or held by a
slot. Whoever fetches, uses or removes a copy holds its lock, which the kernel lets go of with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from pathlib import Path

_STAGING = ".incoming-"
_REMOVED = ".outgoing-"


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed: the copies' names, and bytes of everything."""

    names: tuple[str, ...] = ()
    size: int = 0


def fetch_once(cache_dir: Path, key: str, download: Callable[[Path], str]) -> Path:
    """The folder of a copy, marked as used now.

    Where it is not there, `download` is called with an empty folder, and returns the path in it that
    becomes the copy. What it raises passes, and leaves nothing. What a killed process had fetched goes first.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    folder, staging = cache_dir / key, cache_dir / f"{_STAGING}{key}"
    with _lock(cache_dir, key):
        if not folder.is_dir():
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            try:
                Path(download(staging)).rename(folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        os.utime(folder)
    return folder


def sweep_models(cache_dir: Path, *, held: Collection[str], before: float, now: float) -> Swept:
    """Remove the copies that are not `held` and were not used since `before`; mark the held as used.

    So are half copies of downloads that were killed. One that a process fetches or opens just now stays.
    """
    names: list[str] = []
    size = 0
    for folder in sorted(cache_dir.iterdir()) if cache_dir.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir():
            continue
        if folder.name in held:
            os.utime(folder, (now, now))
        elif folder.name.startswith(_REMOVED):
            size += _remove(folder)
        elif folder.stat().st_mtime < before:
            doomed = _put_aside(folder, before)
            if doomed is not None:
                size += _remove(doomed)
                names.append(folder.name)
    return Swept(tuple(names), size)


def _put_aside(folder: Path, before: float) -> Path | None:
    """Take a copy out of sight under its lock, so that removing it may take its time; None: it is used."""
    key = folder.name.removeprefix(_STAGING)
    try:
        with _lock(folder.parent, key, wait=False):
            if folder.stat().st_mtime >= before:
                return None
            return folder.rename(folder.with_name(f"{_REMOVED}{folder.name}"))
    except (BlockingIOError, FileNotFoundError):
        return None


def _remove(folder: Path) -> int:
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    shutil.rmtree(folder, ignore_errors=True)
    return size


@contextlib.contextmanager
def _lock(cache_dir: Path, key: str, *, wait: bool = True) -> Generator[None]:
    """One process at a time. Raises BlockingIOError without `wait` where another one holds it."""
    with (cache_dir / f".{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
