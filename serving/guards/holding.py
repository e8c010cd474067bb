"""Streams under output checks: events are held back until the text they belong to was checked.

Texts that grow side by side (each choice's content, each tool call's arguments) are channels. A check
reads a channel at a sentence's end or after some characters, with what was released just before. What
may still become a find stays back: an unfinished word, and the last characters of an unfinished sentence.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from configs.guards import StreamHold
from serving.guards.panel import Find, Panel
from serving.guards.personal import Span
from serving.guards.pieces import merged, pieces_of, placeholder
from serving.guards.plain import make_plain

NO_TEXT = frozenset({"finish_reason", "stop_reason", "logprobs", "token_ids", "role", "type", "id"})
"""Fields of a choice that hold no words of the answer, or those that it has elsewhere too."""

_DONE = b"data: [DONE]"
_SENTENCE_END = re.compile(r"""[.!?]["')\]]*\s|\n""")
_MARKS_MAX = 8
_SPACE = re.compile(r"\s")
_Place = tuple[int | str, ...]


@dataclass(slots=True)
class _Channel:
    """A text as it grows. Everything before `released` may go, `checked` is where the last check ended.

    `is_whole`: nothing more is expected (a name, or the answer went on elsewhere).
    """

    is_json: bool
    is_whole: bool = False
    text: str = ""
    released: int = 0
    checked: int = 0
    cuts: list[Span] = field(default_factory=list[Span])


@dataclass(slots=True)
class _Slice:
    """The part of a channel that an event carries."""

    choice: dict[str, Any]
    channel: _Channel
    start: int
    end: int
    put: Any

    def fill(self) -> bool:
        """Put the part's text into the event as it may go out. True where it changed."""
        text, at, parts = self.channel.text, self.start, list[str]()
        for cut in merged(self.channel.cuts):
            if cut.end <= self.start or cut.start >= self.end:
                continue
            parts.append(text[at : max(cut.start, at)])
            if cut.start >= self.start:
                parts.append(placeholder(cut.kind, text[: cut.start], is_json=self.channel.is_json))
            at = min(cut.end, self.end)
        if not parts:
            return False
        self.put("".join([*parts, text[at : self.end]]))
        self.choice.pop("logprobs", None)  # they tell the words that were taken out
        self.choice.pop("token_ids", None)
        return True


@dataclass(slots=True)
class _Event:
    raw: bytes
    document: dict[str, Any] | None = None
    slices: list[_Slice] = field(default_factory=list[_Slice])

    @property
    def may_go(self) -> bool:
        return all(one.channel.released >= one.end for one in self.slices)

    def bytes(self) -> bytes:
        changed = [one.fill() for one in self.slices]
        return _encoded(self.document) if any(changed) and self.document is not None else self.raw


class HeldStream:
    """One stream. `feed` it events in their order, send what it returns, stop when it is `over`."""

    def __init__(self, panel: Panel, hold: StreamHold, *, answers: int = 1) -> None:
        self._panel = panel
        self._hold = hold
        self._answers = answers
        self._queue: deque[_Event] = deque()
        self._channels: dict[_Place, _Channel] = {}
        self._blocked: set[int] = set()
        self._ended: set[int] = set()
        self._current: dict[int, _Place] = {}
        self.over = False

    async def feed(self, raw: bytes) -> list[bytes]:
        """One event without the blank line at its end; what may be sent now, each as `raw`."""
        if self.over:
            return []
        if raw == _DONE:
            return [*await self.close(), raw]
        event = _read(raw)
        choices = list(_choices(event))
        if event.document is not None and choices:
            kept = [choice for choice in choices if _index(choice) not in self._blocked]
            if not kept:
                return []
            if len(kept) < len(choices):
                event.document["choices"] = kept
                event.raw = _encoded(event.document)
            for choice in kept:
                self._take(event, choice)
        self._queue.append(event)
        for choice in choices:
            index = _index(choice)
            if choice.get("finish_reason"):
                self._ended.add(index)
            if index not in self._blocked:
                await self._check_choice(index, event, is_end=index in self._ended)
        return self._released()

    async def close(self) -> list[bytes]:
        """The stream's end: the rest is checked and returned."""
        for index in sorted({int(place[0]) for place in self._channels} - self._blocked):
            await self._check_choice(index, None, is_end=True)
        return self._released()

    def _take(self, event: _Event, choice: dict[str, Any]) -> None:
        """Note which parts of which channels the event carries."""
        index = _index(choice)
        for part, piece in _texts(choice):
            place = (index, *part)
            channel = self._channels.setdefault(place, _Channel(piece.is_json))
            before, self._current[index] = self._current.get(index, place), place
            self._channels[before].is_whole = before != place
            channel.is_whole = piece.field == "name"
            start = len(channel.text)
            channel.text += piece.text
            event.slices.append(_Slice(choice, channel, start, len(channel.text), piece.put))

    async def _check_choice(self, index: int, event: _Event | None, *, is_end: bool) -> None:
        for place, channel in list(self._channels.items()):
            if place[0] != index or not self._is_due(channel, is_end):
                continue
            if not await self._check(channel, is_end or channel.is_whole):
                self._block(index, event)
                return

    def _is_due(self, channel: _Channel, is_end: bool) -> bool:
        if is_end or channel.is_whole:
            return channel.released < len(channel.text)
        if len(channel.text) - channel.checked >= self._hold.hold_characters:
            return True
        ends = _SENTENCE_END.finditer(channel.text, max(channel.checked - _MARKS_MAX, 0))
        return any(found.end() > channel.checked for found in ends)

    async def _check(self, channel: _Channel, is_end: bool) -> bool:
        """Check what is new; False where it is to be blocked."""
        start = max(channel.released - self._hold.overlap_characters, 0)
        plain = make_plain(channel.text[start:], is_json=channel.is_json)
        judged = await self._panel.judge(plain.text)
        channel.checked = len(channel.text)
        if judged.failed:
            return False
        finds: list[Find] = []
        for find in judged.finds:
            low, high = plain.raw(find.span.start, find.span.end)
            if start + high > channel.released:
                finds.append(Find(find.check, Span(find.span.kind, start + low, start + high)))
        blocking = [find for find in finds if find.check.action == "block"]
        if blocking:
            self._panel.count(blocking)
            return False
        boundary = len(channel.text) if is_end else self._boundary(channel)
        for find in sorted(finds, key=lambda one: -one.span.start):
            if find.span.start < boundary < find.span.end:  # it may go on
                boundary = max(find.span.start, channel.released)
        settled = [find for find in finds if find.span.end <= boundary]
        self._panel.count(settled)
        channel.cuts += [
            Span(find.span.kind, max(find.span.start, channel.released), find.span.end)
            for find in settled
            if find.check.action == "redact"
        ]
        channel.released = max(boundary, channel.released)
        return True

    def _boundary(self, channel: _Channel) -> int:
        """How far a text that goes on may be released: a sentence's end, or a word's before the overlap."""
        text, low = channel.text, channel.released
        ends = [low + found.end() for found in _SENTENCE_END.finditer(text[low:])]
        sentence = ends[-1] if ends else low
        latest = len(text) - self._hold.overlap_characters
        spaces = [low + found.end() for found in _SPACE.finditer(text[low : max(latest, low)])]
        word = spaces[-1] if spaces else low
        if max(sentence, word) == low and latest - low > self._hold.hold_characters:
            return latest  # a word without an end
        return max(sentence, word)

    def _block(self, index: int, event: _Event | None) -> None:
        """No further text of a choice: what is held of it goes, and it ends."""
        told = event or next((one for one in reversed(self._queue) if one.document is not None), None)
        about = dict(told.document) if told is not None and told.document is not None else {}
        is_chat = any("delta" in choice for choice in _all_choices(about))
        was_ended = index in self._ended
        self._blocked.add(index)
        self._ended.add(index)
        kept: deque[_Event] = deque()
        for held in self._queue:
            if held.document is None or not (choices := list(_choices(held))):
                kept.append(held)
                continue
            rest = [choice for choice in choices if _index(choice) != index]
            if rest:
                held.document["choices"] = rest
                held.slices = [one for one in held.slices if one.choice in rest]
                held.raw = _encoded(held.document)
                kept.append(held)
        last: dict[str, Any] = {"index": index, "finish_reason": "content_filter"}
        last |= {"delta": {}} if is_chat else {"text": ""}
        about |= {"choices": [last]}
        about.pop("usage", None)
        kept.append(_Event(_encoded(about)))
        if not was_ended and len(self._ended) >= self._answers:
            kept.append(_Event(_DONE))
            self.over = True
        self._queue = kept

    def _released(self) -> list[bytes]:
        out: list[bytes] = []
        while self._queue and self._queue[0].may_go:
            out.append(self._queue.popleft().bytes())
        return out


def _read(raw: bytes) -> _Event:
    """An event with its document, where it has one."""
    data = b"\n".join(line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:"))
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError):
        return _Event(raw)
    return _Event(raw, cast("dict[str, Any]", document)) if isinstance(document, dict) else _Event(raw)


def _encoded(document: dict[str, Any] | None) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode()


def _choices(event: _Event) -> Iterator[dict[str, Any]]:
    yield from _all_choices(event.document or {})


def _all_choices(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    listed: object = document.get("choices")
    for choice in cast("list[Any]", listed) if isinstance(listed, list) else []:
        if isinstance(choice, dict):
            yield cast("dict[str, Any]", choice)


def _index(choice: dict[str, Any]) -> int:
    index: object = choice.get("index")
    return index if isinstance(index, int) else 0


def _texts(choice: dict[str, Any]) -> Iterator[tuple[_Place, Any]]:
    """The texts of one event's choice, each with the place by which its continuation is known."""
    calls: object = None
    delta: object = choice.get("delta")
    if isinstance(delta, dict):
        calls = cast("dict[str, Any]", delta).get("tool_calls")
    for number, call in enumerate(cast("list[Any]", calls) if isinstance(calls, list) else []):
        at = call.get("index", number) if isinstance(call, dict) else number
        for piece in pieces_of(call, NO_TEXT):
            yield ("tool_calls", int(at), piece.field), piece
    for piece in pieces_of(choice, NO_TEXT | {"tool_calls"}):
        yield (piece.field,), piece
