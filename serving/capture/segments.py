"""Segments: append-only JSONL files of one writer, cut by size and time, readable while written.

A writer is one run of one process. Its files are numbered, so that a reader can tell that one is
missing, and each ends with a trailer line, so that a reader knows when to go on to the next:

    NAME.RUN.SEQUENCE.OPENED_MS.jsonl
    flights-blue-21000.1795400000000-4711.00000003.1795400012000.jsonl

A writer that was killed leaves no trailer and at most one unfinished last line, which no reader
consumes. Standard library only: this also runs inside servers that are not ours.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

TRAILER = b'{"segment_end":true}\n'
"""Last line of a segment that its writer closed."""

_SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """What a segment's file name says. `writer` is unique to one run of one process."""

    writer: str
    sequence: int
    opened_ms: int

    @property
    def filename(self) -> str:
        """The file's name."""
        return f"{self.writer}.{self.sequence:08d}.{self.opened_ms}{_SUFFIX}"

    @classmethod
    def parse(cls, filename: str) -> SegmentName | None:
        """The parts of a file name, or None where it is not a segment's."""
        parts = filename.removesuffix(_SUFFIX).rsplit(".", 2)
        if not filename.endswith(_SUFFIX) or len(parts) != 3 or not (parts[1] + parts[2]).isdigit():
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]))


def list_segments(folder: Path) -> list[SegmentName]:
    """The segments of a folder, by writer and number. A folder that does not exist yet has none."""
    try:
        filenames = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in map(SegmentName.parse, filenames) if name is not None)


def purge_segments(folder: Path, *, opened_before: float) -> int:
    """Delete segments opened before a time (seconds since the epoch), whoever wrote them.

    Returns how many. Any writer of the folder may do it for all: a writer that died cannot.
    """
    purged = 0
    for name in list_segments(folder):
        if name.opened_ms < opened_before * 1000:
            with contextlib.suppress(FileNotFoundError):
                (folder / name.filename).unlink()
                purged += 1
    return purged


class SegmentWriter:
    """Writes whole lines; one system call a batch, so that a kill tears at most the last line.

    `bytes_max` and `seconds_max` bound one segment; `keep_s` deletes segments of the whole folder
    once they are older. Not for use by several threads at a time.
    """

    def __init__(
        self, folder: Path, writer: str, *, bytes_max: int, seconds_max: float, keep_s: float | None = None
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max
        self._keep_s = keep_s
        self._file: int | None = None
        self._path = folder
        self._sequence = 0
        self._opened = 0.0
        self._size = 0
        self._next_purge = 0.0

    def write(self, lines: bytes, now: float) -> None:
        """Append complete lines. Raises OSError; the segment is then given up and a new one follows."""
        file = self._file if self._file is not None else self._open(now)
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(file, view) :]
        except OSError:
            self._abandon()
            raise
        self._size += len(lines)
        if self._size >= self._bytes_max:
            self.rotate()

    def tick(self, now: float) -> None:
        """Close a segment that is old enough, and delete those past their age. Cheap: call it often."""
        if self._file is not None and now - self._opened >= self._seconds_max:
            self.rotate()
        if self._keep_s is not None and now >= self._next_purge:
            self._next_purge = now + 1.0
            purge_segments(self._folder, opened_before=now - self._keep_s)

    def rotate(self) -> None:
        """End the current segment with its trailer, if there is one."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._file, TRAILER)
        self._abandon()

    def _open(self, now: float) -> int:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = SegmentName(self._writer, self._sequence, int(now * 1000))
        self._path = self._folder / name.filename
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._opened = now
        self._size = 0
        return self._file

    def _abandon(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None
            self._sequence += 1
