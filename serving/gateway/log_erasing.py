"""Taking old lines and users out of the gateway's access log while HAProxy appends to it.

Offsets must stay what they are: cursors are offsets, and HAProxy holds the file open. So old lines
become a hole in the file (their blocks are given back), and a forgotten user's pseudonym becomes zeros
of the same length, which keeps every count.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Collection, Generator
from pathlib import Path

from serving.gateway.identity import HMAC_CHARS

_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_LINE_BYTES_MAX = 8_192
_BLOCK = 1 << 20
_ARRIVED = re.compile(rb'^\{"t0":"(\d+)"', re.MULTILINE)
_NOBODY = b"0" * HMAC_CHARS
_USER = re.compile(rb'"endpoint":"([^"]*)","tenant":"[^"]*","user":"([0-9a-f]+)"')
_TENANT = re.compile(rb'"endpoint":"([^"]*)","tenant":"([^"]+)"')
_ID = re.compile(rb'"id":"([^"]*)"')


def erase_before(path: Path, before: float) -> int:
    """Erase the lines of requests that arrived before a moment (seconds since the epoch).

    Returns how many bytes. Lines are in the order of completion, so one that took long may stay a little
    longer. Safe to repeat.
    """
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return 0
    with file:
        start = first_data(file.fileno(), 0)
        size = os.fstat(file.fileno()).st_size
        low, high = start, size
        while high - low > _LINE_BYTES_MAX:
            middle = (low + high) // 2
            arrived = _arrival_after(file.fileno(), middle, high)
            if arrived is None or arrived >= before:
                high = middle
            else:
                low = middle
        cut = _line_start(file.fileno(), low, size, before)
        # the line end before the first line that stays is kept: readers look for it
        if cut - 1 > start and os.pread(file.fileno(), min(_BLOCK, cut - 1 - start), start).strip(b"\0\n"):
            _erase(file.fileno(), start, cut - 1)
            return cut - 1 - start
    return 0


def hide_users(path: Path, endpoint: str, users: Collection[str]) -> tuple[int, set[str]]:
    """Put zeros for these pseudonyms in an endpoint's lines. Returns how many, and the requests' ids."""
    wanted = {user.encode() for user in users}
    hidden, ids = 0, set[str]()
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return 0, ids
    with file:
        number = file.fileno()
        for position, lines in _whole_lines(number):
            for found in _USER.finditer(lines):
                if found[1] == endpoint.encode() and found[2] in wanted:
                    os.pwrite(number, _NOBODY[: len(found[2])], position + found.start(2))
                    if (named := _named(lines, found)) is not None:
                        ids.add(named[1].decode())
                    hidden += 1
        if hidden:
            os.fsync(number)
    return hidden, ids


def forgotten_requests(path: Path, endpoint: str) -> set[str]:
    """The ids of an endpoint's requests whose users were hidden, by this call's like or an earlier one's."""
    return {
        named[1].decode()
        for lines in _lines_of(path)
        for found in _USER.finditer(lines)
        if found[1] == endpoint.encode() and not found[2].strip(b"0")
        if (named := _named(lines, found)) is not None
    }


def _named(lines: bytes, user: re.Match[bytes]) -> re.Match[bytes] | None:
    """The id in the line of a user."""
    return _ID.search(lines, lines.rfind(b"\n", 0, user.start()) + 1, user.start())


def logged_tenants(path: Path, endpoint: str) -> set[str]:
    """Every tenant whose requests an endpoint's lines tell of."""
    return {
        found[2].decode()
        for lines in _lines_of(path)
        for found in _TENANT.finditer(lines)
        if found[1] == endpoint.encode()
    }


def _lines_of(path: Path) -> Generator[bytes]:
    """The whole lines of a log, many at a time; none where there is no log."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for _, lines in _whole_lines(file.fileno()):
            yield lines


def _whole_lines(file: int) -> Generator[tuple[int, bytes]]:
    """The log in pieces of whole lines, each with its position; holes are left out."""
    position = first_data(file, 0)
    while data := os.pread(file, _BLOCK, position):
        whole = data.rfind(b"\n") + 1
        if whole == 0:
            return
        yield position, data[:whole]
        position = first_data(file, position + whole)


def first_data(file: int, position: int) -> int:
    """Where the next byte is that is in no hole; the end of the file where there is none."""
    try:
        return os.lseek(file, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return os.fstat(file).st_size
        return position  # a file system that knows no holes


def _arrival_after(file: int, position: int, end: int) -> float | None:
    """When the first whole line's request after a position arrived, None where there is none."""
    data = os.pread(file, min(2 * _LINE_BYTES_MAX, end - position), position)
    found = _ARRIVED.search(data, data.find(b"\n") + 1)
    return int(found[1]) / 1e6 if found is not None else None


def _line_start(file: int, low: int, size: int, before: float) -> int:
    """The start of the first line from about `low` on that stays; `low` itself where none is found."""
    data = os.pread(file, min(3 * _LINE_BYTES_MAX, size - low), low)
    begins = data.find(b"\n") + 1 if low else 0
    last = 0
    for found in _ARRIVED.finditer(data, begins):
        if int(found[1]) / 1e6 >= before:
            return low + found.start()
        last = data.find(b"\n", found.start()) + 1
    return low + last


def _erase(file: int, start: int, end: int) -> None:
    """Make a hole; where the file system cannot, line ends take the place."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset, length = ctypes.c_int64(start), ctypes.c_int64(end - start)
    if libc.fallocate(file, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
        return
    for position in range(start, end, _BLOCK):
        os.pwrite(file, b"\n" * min(_BLOCK, end - position), position)
