"""Texts as checks read them: look-alikes of letters made plain, and the way back to the places they stood.

Full-width and other compatibility forms become what they look like (Unicode's NFKC, character by
character), invisible characters go, and escapes in JSON source (a tool call's arguments) are read.
Letters of other scripts that only look alike (Cyrillic) stay what they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_INVISIBLE = frozenset(map(chr, (0x034F, *range(0xFE00, 0xFE10))))
_JSON_PARTS = re.compile(r"\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\b": "\b", "\\f": "\f"}


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain text. `places` has (start, end) of each of its characters in the raw one; None: the same."""

    text: str
    places: Sequence[tuple[int, int]] | None = None

    def raw(self, start: int, end: int) -> tuple[int, int]:
        """Where a non-empty stretch of the plain text stands in the raw one."""
        if self.places is None:
            return start, end
        return self.places[start][0], self.places[end - 1][1]


def make_plain(raw: str, *, is_json: bool = False) -> Plain:
    """The plain form of a text; `is_json` for JSON source."""
    escaped = is_json and "\\" in raw
    if raw.isascii() and not escaped:
        return Plain(raw)
    letters: list[str] = []
    places: list[tuple[int, int]] = []
    for start, end, char in _parts(raw, escaped):
        for letter in "" if _is_invisible(char) else unicodedata.normalize("NFKC", char):
            letters.append(letter)
            places.append((start, end))
    return Plain("".join(letters), places)


def _parts(raw: str, escaped: bool) -> Iterator[tuple[int, int, str]]:
    if not escaped:
        yield from ((at, at + 1, char) for at, char in enumerate(raw))
        return
    for found in _JSON_PARTS.finditer(raw):
        part = found[0]
        if len(part) == 6 and part[1] == "u":
            part = chr(int.from_bytes(bytes.fromhex(part[2:])))
        elif len(part) == 2:
            part = _ESCAPES.get(part, part[1])
        yield found.start(), found.end(), part


def _is_invisible(char: str) -> bool:
    return char in _INVISIBLE or unicodedata.category(char) == "Cf"
