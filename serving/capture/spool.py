"""Reading the spool: exact exchanges of one slot, followed while its replicas write them.

The cursor says for each writer which segment and byte to read on from. It is opaque text, small,
and survives a restart of the reader. Segments are deleted by age, so a reader that falls behind
loses some: the cursor counts them (`lost_segments`), nothing is lost in silence.
"""

from __future__ import annotations

import heapq
import json
from binascii import a2b_base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.capture.sealing import KEY_VARIABLE, Seal, SpoolSealed
from serving.capture.segments import TRAILER, SegmentName, list_segments
from serving.endpoint import Exchange
from serving.errors import ServingError

_READ_BYTES = 1 << 20


class CursorInvalid(ServingError):
    """A cursor that this reader did not write."""


@dataclass(slots=True)
class _Position:
    """Where one writer was read to. `at_end` says that nothing more was there the last time."""

    sequence: int
    offset: int
    at_end: bool = False


@dataclass(slots=True)
class _Cursor:
    writers: dict[str, _Position] = field(default_factory=dict)
    lost: int = 0

    def dump(self) -> str:
        writers = {name: [p.sequence, p.offset, int(p.at_end)] for name, p in sorted(self.writers.items())}
        return json.dumps({"writers": writers, "lost": self.lost}, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> _Cursor:
        try:
            document = json.loads(text)
            writers = {
                name: _Position(int(sequence), int(offset), bool(at_end))
                for name, (sequence, offset, at_end) in document["writers"].items()
            }
            return cls(writers, int(document["lost"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CursorInvalid(
                f"Not a spool cursor: {text[:80]!r}. Next: start again with no cursor."
            ) from error


def lost_segments(cursor: str) -> int:
    """How many segments were deleted before they were read, since the cursor's line began."""
    return _Cursor.load(cursor).lost


def unread_bytes(folder: Path, cursor: str) -> int:
    """Bytes that lie in the folder beyond the cursor: the reader's lag."""
    position = _Cursor.load(cursor).writers
    unread = 0
    for name in list_segments(folder):
        at = position.get(name.writer)
        if at is None or name.sequence >= at.sequence:
            read = at.offset if at is not None and name.sequence == at.sequence else 0
            unread += max(0, _size(folder / name.filename) - read)
    return unread


def read_exchanges(
    folder: Path, cursor: str | None, limit: int, seal: Seal | None = None
) -> tuple[list[Exchange], str]:
    """Up to `limit` exchanges beyond `cursor`, oldest first over all replicas, and where to read on.

    `cursor=None` starts at now: no exchanges, only a cursor. An unfinished last line waits for
    the next call. Exchanges whose bodies were too large to be spooled whole are left out.
    Raises `CursorInvalid`, and `SpoolSealed` for records that `seal` does not open.
    """
    segments = list_segments(folder)
    if cursor is None:
        return [], _at_now(folder, segments).dump()
    at = _Cursor.load(cursor)
    _settle_deleted(at, segments)
    by_writer: dict[str, list[SegmentName]] = {}
    for name in segments:
        by_writer.setdefault(name.writer, []).append(name)
    streams = [
        _follow(folder, writer, names, at.writers.setdefault(writer, _Position(names[0].sequence, 0)), seal)
        for writer, names in by_writer.items()
    ]
    exchanges: list[Exchange] = []
    for line in heapq.merge(*streams, key=lambda line: (line.time, line.writer, line.offset)):
        if len(exchanges) >= limit:
            break
        at.writers[line.writer] = _Position(line.sequence, line.offset)
        if line.exchange is not None:
            exchanges.append(line.exchange)
    _mark_ends(folder, at, segments)
    return exchanges, at.dump()


def newest_exchanges(folder: Path, limit: int, seal: Seal | None = None) -> list[Exchange]:
    """The newest `limit` exchanges of a slot, oldest first; reads no more segments than that takes.

    Raises `SpoolSealed` as `read_exchanges` does.
    """
    by_writer: dict[str, list[SegmentName]] = {}
    for name in list_segments(folder):
        by_writer.setdefault(name.writer, []).append(name)
    found: list[Exchange] = []
    for names in by_writer.values():
        theirs: list[Exchange] = []
        for name in reversed(names):
            lines = _complete_lines(folder / name.filename, 0)
            read = (_exchange(_document(line), seal) for line, _ in lines)
            theirs = [*(one for one in read if one is not None), *theirs]
            if len(theirs) >= limit:
                break
        found += theirs
    return sorted(found, key=lambda exchange: exchange.time)[-limit:]


@dataclass(frozen=True, slots=True)
class _Line:
    """One line, and the position after it. The trailer and unusable lines carry no exchange."""

    time: float
    writer: str
    sequence: int
    offset: int
    exchange: Exchange | None


def _follow(
    folder: Path, writer: str, names: list[SegmentName], start: _Position, seal: Seal | None
) -> Iterator[_Line]:
    """The lines of one writer from `start`, over its segments in order, lazily."""
    time, sequence, offset = 0.0, start.sequence, start.offset
    for name in names:
        if name.sequence < sequence:
            continue
        offset = offset if name.sequence == sequence else 0
        sequence = name.sequence
        for line, end in _complete_lines(folder / name.filename, offset):
            document = _document(line)
            time = float(document.get("time", time))
            if document.get("segment_end"):
                yield _Line(time, writer, sequence + 1, 0, None)
            else:
                yield _Line(time, writer, sequence, end, _exchange(document, seal))


def _complete_lines(path: Path, offset: int) -> Iterator[tuple[bytes, int]]:
    """Each finished line from `offset`, with the offset after it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        rest = b""
        while block := file.read(_READ_BYTES):
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for line in lines:
                offset += len(line) + 1
                yield line, offset


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _exchange(document: dict[str, Any], seal: Seal | None) -> Exchange | None:
    if document.get("truncated"):
        return None
    try:
        request, response = _bodies(document, seal)
        return Exchange(
            request_id=document["request_id"],
            time=document["time"],
            version=document["version"],
            path=document["path"],
            content_type=document["content_type"],
            request=request,
            status=document["status"],
            response=response,
            service_ms=document["service_ms"],
        )
    except (KeyError, ValueError):
        return None


def _bodies(document: dict[str, Any], seal: Seal | None) -> tuple[bytes, bytes]:
    sealed = document.get("sealed")
    if sealed is None:
        return a2b_base64(document["request"]), a2b_base64(document["response"])
    if seal is None:
        raise SpoolSealed(
            "the spool is encrypted, and this process has no key for it. Next: give it the replicas' key "
            f"({KEY_VARIABLE}, or secrets/spool.key)"
        )
    return seal.open(sealed, document["request_id"])


def _at_now(folder: Path, segments: list[SegmentName]) -> _Cursor:
    """The end of every writer's last segment."""
    last = {name.writer: name for name in segments}
    return _Cursor(
        {
            writer: _Position(name.sequence, _end_of_lines(folder / name.filename))
            for writer, name in last.items()
        }
    )


def _end_of_lines(path: Path) -> int:
    """The offset after the last finished line: a line half written now is read later, whole."""
    ends = [0]
    ends.extend(end for _, end in _complete_lines(path, 0))
    return ends[-1]


def _settle_deleted(at: _Cursor, segments: list[SegmentName]) -> None:
    """Move positions off segments that are gone, and count what was not read of them."""
    present: dict[str, list[int]] = {}
    for name in segments:
        present.setdefault(name.writer, []).append(name.sequence)
    for writer, position in list(at.writers.items()):
        sequences = present.get(writer)
        if sequences is None:  # never comes back under a number that was read already
            at.lost += 0 if position.at_end else 1
            del at.writers[writer]
            continue
        later = [sequence for sequence in sequences if sequence >= position.sequence]
        if later and later[0] > position.sequence:
            at.lost += later[0] - position.sequence
            at.writers[writer] = _Position(later[0], 0)


def _mark_ends(folder: Path, at: _Cursor, segments: list[SegmentName]) -> None:
    """Step over trailers, and note where nothing is left: a later deletion there counts as no loss."""
    names = {(name.writer, name.sequence): name for name in segments}
    for writer, position in at.writers.items():
        name = names.get((writer, position.sequence))
        if name is None:  # after a trailer: the next segment does not exist yet
            position.at_end = True
            continue
        rest = _rest(folder / name.filename, position.offset, len(TRAILER) + 1)
        if rest == TRAILER:
            has_next = (writer, position.sequence + 1) in names
            at.writers[writer] = _Position(position.sequence + 1, 0, at_end=not has_next)
        else:
            position.at_end = not rest


def _rest(path: Path, offset: int, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(most)
    except FileNotFoundError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
