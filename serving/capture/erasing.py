"""Taking users out of captures and spools, although they are being written.

Live segments are blanked in place: their writer appends and holds the file open, so a rewritten copy
would lose what it writes next. A blank line is no record to any reader, and no byte of it is left on
the disk's blocks. Parquet files are rewritten beside themselves and swapped in whole. Killed halfway,
the same call again does the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.capture.reader import held_alone, open_bounded, quoted
from serving.capture.segments import list_segments

_LINE_READ_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Erased:
    """What was taken out of an endpoint's captures."""

    rows: int
    request_ids: frozenset[str]


def erase_users(folder: Path, users: Collection[str]) -> Erased:
    """Take every captured request of these users (as captures name them) out. Safe to repeat."""
    wanted = sorted(user for user in users if user)
    if not wanted or not folder.is_dir():
        return Erased(0, frozenset())
    ids: set[str] = set()
    rows = 0

    def is_theirs(document: dict[str, Any]) -> bool:
        found = document.get("user") in wanted
        if found:
            ids.add(str(document.get("request_id", "")))
        return found

    with held_alone(folder):
        for name in list_segments(folder / "live"):
            rows += blank_lines(folder / "live" / name.filename, is_theirs)
        for path in sorted(folder.glob("parquet/hour=*/*.parquet")):
            taken = _rewrite(path, wanted)
            rows += len(taken)
            ids.update(taken)
    return Erased(rows, frozenset(ids))


def erase_spooled(folder: Path, request_ids: Collection[str]) -> int:
    """Blank these requests in the spool of a slot. Returns how many were there."""
    wanted = frozenset(request_ids)
    if not wanted:
        return 0
    return sum(
        blank_lines(folder / name.filename, lambda document: document.get("request_id") in wanted)
        for name in list_segments(folder)
    )


def blank_lines(path: Path, is_wanted: Callable[[dict[str, Any]], bool]) -> int:
    """Overwrite whole lines of a segment with spaces where their record is wanted. Returns how many."""
    blanked = 0
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return 0
    with file:
        position = 0
        while line := file.readline(_LINE_READ_MAX):
            if not line.endswith(b"\n"):
                break  # being written, or torn for ever
            if line[:1] == b"{" and is_wanted(_document(line)):
                os.pwrite(file.fileno(), b" " * (len(line) - 1), position)
                blanked += 1
            position += len(line)
        if blanked:
            os.fsync(file.fileno())
    return blanked


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _rewrite(path: Path, users: list[str]) -> list[str]:
    """The file without these users; the ids that were taken out. Nothing is written where there are none."""
    with open_bounded() as database:
        source = f"read_parquet({quoted([path])})"
        theirs = 'list_contains(?::VARCHAR[], "user")'
        taken = database.execute(f"SELECT request_id FROM {source} WHERE {theirs}", [users]).fetchall()  # noqa: S608
        if not taken:
            return []
        fresh = path.with_suffix(".erasing")
        target = str(fresh).replace("'", "''")
        # no user at all is nobody's: null must not be taken for theirs
        database.execute(
            f"COPY (SELECT * FROM {source} WHERE NOT coalesce({theirs}, false) ORDER BY time, request_id) "  # noqa: S608
            f"TO '{target}' (FORMAT parquet, COMPRESSION zstd)",
            [users],
        )
    fresh.chmod(0o600)
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.replace(path)
    return [str(row[0]) for row in taken]
