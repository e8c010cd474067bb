"""The texts inside a request or an answer: every string, wherever it stands, to be read and replaced."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from serving.guards.personal import Span
from serving.guards.plain import Plain, make_plain

_JSON_FIELDS = frozenset({"arguments", "input_json", "partial_json"})
"""Fields whose text is JSON source: what a tool is called with."""
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]{0,63}")
_INLINE_DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,[A-Za-z0-9+/=\s]*")
_BETWEEN = "\n"


@dataclass(slots=True)
class Piece:
    """One text, the name of its field, and how to put another text in its place."""

    text: str
    put: Callable[[str], None]
    field: str = ""
    is_json: bool = False
    is_key: bool = False


def pieces_of(document: Any, skip: Collection[str] = ()) -> list[Piece]:
    """Every text of a document in its order, keys that are no plain names too, files inlined in base64 not.

    `skip` are keys whose values are left out, wherever they stand. Not recursive: depth costs nothing.
    """
    found: list[Piece] = []
    stack: list[tuple[Any, Any, str]] = [(None, document, "")]
    while stack:
        put, value, field = stack.pop()
        if isinstance(value, str):
            if put is not None and value and not _INLINE_DATA.fullmatch(value):
                found.append(Piece(value, put, field, is_json=field in _JSON_FIELDS))
        elif isinstance(value, dict):
            mapping = cast("dict[str, Any]", value)
            found += [
                Piece(key, _renamer(mapping, key), key, is_key=True)
                for key in mapping
                if not _IDENTIFIER.fullmatch(key)
            ]
            stack += [
                (_setter(mapping, key), inner, key)
                for key, inner in reversed(mapping.items())
                if key not in skip
            ]
        elif isinstance(value, list):
            items = cast("list[Any]", value)
            stack += [(_setter(items, at), items[at], field) for at in reversed(range(len(items)))]
    return found


def _setter(container: Any, key: Any) -> Callable[[str], None]:
    def put(text: str) -> None:
        container[key] = text

    return put


def _renamer(mapping: dict[str, Any], key: str) -> Callable[[str], None]:
    def put(text: str) -> None:
        items = [(text if name == key else name, value) for name, value in mapping.items()]
        mapping.clear()
        mapping.update(items)

    return put


class Joined:
    """Pieces as one plain text, so that a check reads them once, and what stands in two of them is found."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._plains: list[Plain] = [make_plain(piece.text, is_json=piece.is_json) for piece in pieces]
        self._starts: list[int] = []
        at = 0
        for plain in self._plains:
            self._starts.append(at)
            at += len(plain.text) + len(_BETWEEN)
        self.text = _BETWEEN.join(plain.text for plain in self._plains)

    def redact(self, spans: Sequence[Span]) -> bool:
        """Put `<kind>` in place of the spans of the joined text. True where anything changed."""
        cuts: dict[int, list[Span]] = {}
        for span in spans:
            first = bisect.bisect_right(self._starts, span.start) - 1
            for index in range(first, len(self._pieces)):
                start = max(span.start - self._starts[index], 0)
                end = min(span.end - self._starts[index], len(self._plains[index].text))
                if self._starts[index] >= span.end:
                    break
                if start < end:
                    cuts.setdefault(index, []).append(Span(span.kind, *self._plains[index].raw(start, end)))
        for index in sorted(cuts, key=lambda one: self._pieces[one].is_key):  # keys last: values hang on them
            piece = self._pieces[index]
            piece.put(cut_out(piece.text, cuts[index], is_json=piece.is_json))
        return bool(cuts)


def cut_out(text: str, spans: Sequence[Span], *, is_json: bool = False) -> str:
    """The text with `<kind>` for each span; within JSON source as a string of its own where none is open."""
    parts: list[str] = []
    at = 0
    for span in merged(spans):
        parts += [text[at : span.start], placeholder(span.kind, text[: span.start], is_json=is_json)]
        at = span.end
    return "".join([*parts, text[at:]])


def placeholder(kind: str, before: str, *, is_json: bool) -> str:
    """What stands for a find; `before` is the text before it."""
    return f'"<{kind}>"' if is_json and not _is_in_string(before) else f"<{kind}>"


def merged(spans: Sequence[Span]) -> Iterator[Span]:
    """In their order; overlapping ones as one of the first one's kind."""
    held: Span | None = None
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        if held is None:
            held = span
        elif span.start < held.end:
            held = Span(held.kind, held.start, max(held.end, span.end))
        else:
            yield held
            held = span
    if held is not None:
        yield held


def _is_in_string(source: str) -> bool:
    return len(re.findall(r'(?<!\\)(?:\\\\)*"', source)) % 2 == 1
