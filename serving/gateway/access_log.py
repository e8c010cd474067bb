"""Reads the gateway's access log: finished requests of one endpoint, from a byte position on.

The log is appended by HAProxy and never rewritten, so a position is a complete memory: the same
two positions always give the same rows. A cursor is `inode:offset`; after a rotation the rest of
the old file (found by its inode beside the new one) is read before the new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from serving.endpoint import FAULTS, OBSERVATION_COLUMNS, SHARE_SCALE
from serving.errors import Refused
from serving.gateway.log_erasing import first_data
from serving.gateway.log_format import LINE_GROUPS, endpoint_mark, line_pattern

if TYPE_CHECKING:
    import pandas as pd

_CHUNK_BYTES = 8 << 20
_LINE_BYTES_MAX = 8_192
_UNANSWERED_PHASES = "RQCH"
"""Second letter of HAProxy's termination state: before the answer's headers were complete."""
_ANSWER_PHASES = "DL"
"""The same: while the answer passed."""


@dataclass(frozen=True, slots=True)
class LogPart:
    """Rows between two cursors. `malformed` lines named the endpoint but could not be read."""

    frame: pd.DataFrame
    cursor: str
    malformed: int


class AccessLog:
    """One endpoint's view of the gateway's log. Holds no state: cursors do."""

    def __init__(self, path: Path, endpoint: str) -> None:
        self._path = path
        self._pattern = line_pattern(endpoint)
        self._mark = endpoint_mark(endpoint)

    def read(self, cursor: str | None, *, until: str | None = None, limit: int | None = None) -> LogPart:
        """Requests that were assigned to a slot, logged after `cursor` (None: start at now).

        `until` is a cursor to stop at; without it the last complete line. `limit` stops after the
        chunk (of some megabytes) in which so many rows are reached. An unfinished line waits for
        the next call. Raises Refused for a text that is no cursor.
        """
        import pandas as pd

        if cursor is None:
            return LogPart(_frame([]), self._now(), 0)
        start, stop = _parse(cursor), _parse(until) if until else None
        frames: list[pd.DataFrame] = []
        malformed = count = 0
        for path in self._files_from(start):
            inode, size = _inode(path), path.stat().st_size
            position = start.offset if inode == start.inode and start.offset <= size else 0
            end = stop.offset if stop and stop.inode == inode else size
            for chunk, read_to in _chunks(path, position, end):
                rows = self._pattern.findall(chunk)
                malformed += chunk.count(self._mark) - len(rows)
                if rows:
                    frames.append(_frame(rows))
                position = read_to
                count += len(rows)
                if limit is not None and count >= limit:
                    break
            cursor = f"{inode}:{position}"
            if (stop and stop.inode == inode) or (limit is not None and count >= limit):
                break
        frame = pd.concat(frames, ignore_index=True) if frames else _frame([])
        return LogPart(frame, cursor, malformed)

    def recent(self, most_bytes: int) -> pd.DataFrame:
        """The newest requests, from the last `most_bytes` of the log and from whole lines only."""
        inode = _inode(self._path)
        if inode is None:
            return _frame([])
        return self.read(f"{inode}:{max(0, self._path.stat().st_size - most_bytes)}").frame

    def _files_from(self, start: _Position) -> list[Path]:
        """The file of the cursor, then the present one, where they differ."""
        present = _inode(self._path)
        if present in (None, start.inode):
            return [self._path] if present is not None else []
        older = [
            path for path in self._path.parent.glob(f"{self._path.name}.*") if _inode(path) == start.inode
        ]
        return [*older[:1], self._path]

    def _now(self) -> str:
        """The end of the last complete line."""
        try:
            with self._path.open("rb") as log:
                size = os.fstat(log.fileno()).st_size
                log.seek(max(0, size - _LINE_BYTES_MAX))
                tail = log.read(size - log.tell())
                torn = len(tail) - (tail.rfind(b"\n") + 1)
                return f"{os.fstat(log.fileno()).st_ino}:{size - torn}"
        except FileNotFoundError:
            return "0:0"  # whatever file comes is read from its beginning


@dataclass(frozen=True, slots=True)
class _Position:
    inode: int
    offset: int


def _parse(cursor: str) -> _Position:
    inode, _, offset = cursor.partition(":")
    try:
        return _Position(int(inode), int(offset))
    except ValueError as error:
        raise Refused(f"{cursor!r} is not a cursor of the access log. Next: start without one") from error


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _chunks(path: Path, position: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines, a few megabytes at a time, with the position after them; what was erased is skipped."""
    with path.open("rb") as log:
        while (position := first_data(log.fileno(), position)) < end:
            log.seek(position)
            data = log.read(min(_CHUNK_BYTES, end - position))
            whole = data.rfind(b"\n") + 1
            if whole == 0:
                return
            position += whole
            yield data[:whole], position


def _frame(rows: list[tuple[bytes, ...]]) -> pd.DataFrame:
    """Log lines as observations; those that were never assigned to a slot are left out."""
    import numpy as np
    import pandas as pd

    slot_at = LINE_GROUPS.index("slot")
    kept = [row for row in rows if row[slot_at] != b"-"]
    columns = zip(*kept, strict=True) if kept else ((),) * len(LINE_GROUPS)
    raw = dict(zip(LINE_GROUPS, columns, strict=True))
    count = len(kept)

    def texts(name: str) -> list[str]:
        return ["" if value == b"-" else value.decode() for value in raw[name]]

    def numbers(name: str, missing: int = -1) -> np.ndarray:
        values = (missing if value == b"-" else int(value) for value in raw[name])
        return np.fromiter(values, np.int64, count)

    arrived, answered, ended = numbers("t0"), numbers("t1"), numbers("t2")
    queued_ms = np.maximum(numbers("queue_ms"), 0)
    service_ms = (np.where(answered < 0, ended, answered) - arrived) / 1000 - queued_ms
    is_gone = np.fromiter((_is_unanswered(value) for value in raw["end"]), np.bool_, count)
    status = np.where(is_gone, 0, np.maximum(numbers("status"), 0))
    is_refused = np.isin(status, list(FAULTS)) & (answered >= 0)  # not the gateway's own 400
    is_broken = np.fromiter((_is_broken(value) for value in raw["end"]), np.bool_, count)
    is_elsewhere = np.fromiter((value != b"-" for value in raw["served"]), np.bool_, count)
    is_retried = np.fromiter((value not in (b"0", b"-") for value in raw["retries"]), np.bool_, count)
    frame = pd.DataFrame(
        {
            "request_id": texts("id"),
            "time": arrived / 1e6,
            "user": texts("user"),
            "tenant": texts("tenant"),
            "slot": texts("slot"),
            "version": texts("version"),
            "generation": numbers("generation"),
            "share": numbers("share", 0) / SHARE_SCALE,
            "status": status,
            "failed": (status >= 500) | (status == 0) | is_refused | is_broken | is_retried | is_elsewhere,
            "service_ms": np.maximum(service_ms, 0.0),
            "total_ms": np.maximum((ended - arrived) / 1000, 0.0),
        }
    )
    texts_of = [name for name, kind in OBSERVATION_COLUMNS.items() if kind.startswith("str")]
    return frame.astype(dict.fromkeys(texts_of, object))


def _is_unanswered(end: bytes) -> bool:
    """Whether the client went away before an answer began."""
    return end[:1] in b"Cc" and len(end) > 1 and chr(end[1]) in _UNANSWERED_PHASES


def _is_broken(end: bytes) -> bool:
    """Whether the replica died or fell silent in the middle of its answer."""
    return end[:1] in b"Ss" and len(end) > 1 and chr(end[1]) in _ANSWER_PHASES
