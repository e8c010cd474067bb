"""What is remembered of users: which share they were seen at, and the windows that are open now.

Two sorted tables. The known users: a hash and two bytes for what is known of their side, for as long
as the release lasts. The open windows: few, for they close within seconds.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from configs.policy import Window
from evals.badness import BadArray, BoolArray, IntArray
from evals.sequential import FloatArray

USERS_MAX = 5_000_000
"""Users remembered in a release, at ten bytes each; who comes later is no unit of evidence."""
_OURS = 0
"""Code of users on the candidate's side: nothing is left to draw."""
_NEW = -1
"""Code of users never seen, who are nobody's yet."""
T = TypeVar("T", bound=np.generic)
_OPEN = ("key", "start", "share", "pi", "candidate", "count")

Closed = tuple[NDArray[np.uint64], FloatArray, BoolArray, NDArray[np.int32], NDArray[np.int32]]
"""Key, pi, candidate, number of requests, and summed values (metrics, n) of closed windows."""


class Users:
    """The users of one family of metrics. Rows are those of the open windows, sorted by key."""

    def __init__(self, metrics: int, window: Window, *, most: int = USERS_MAX) -> None:
        self._window = window
        self._most = most
        self._known: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self._code: NDArray[np.uint16] = np.zeros(0, np.uint16)
        self._held: list[float] = [
            1.0
        ]  # by code: the share at which a user is the champion's; shares are basis points
        self.key: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.start: FloatArray = np.zeros(0)
        self.share: FloatArray = np.zeros(0)
        self.pi: FloatArray = np.zeros(0)
        self.candidate: BoolArray = np.zeros(0, np.bool_)
        self.count: NDArray[np.int32] = np.zeros(0, np.int32)
        self.bad: NDArray[np.int32] = np.zeros((metrics, 0), np.int32)

    @property
    def seen(self) -> int:
        """Distinct users."""
        return int(self._known.size)

    @property
    def open_count(self) -> int:
        """Windows that are open."""
        return int(self.key.size)

    def admit(
        self,
        keys: NDArray[np.uint64],
        first: IntArray,
        candidate: BoolArray,
        start: FloatArray,
        *,
        share: float,
    ) -> tuple[FloatArray, BoolArray, IntArray]:
        """Open a window for those of these users whom this share draws afresh, and remember their side.

        `keys` are sorted; `first` orders their arrival, `candidate` and `start` are side and time of
        their first request. Returns the pi of those who enter, a mask of them over `keys`, and the row of
        everybody's open window, -1 where there is none. Of users never seen only as many enter as may be
        remembered.
        """
        place, is_known = _find(self._known, keys)
        held = np.array([*self._held, 0.0])
        code = np.full(keys.size, _NEW, np.int64)
        code[is_known] = self._code[place[is_known]]
        enters = (share > held + 1e-12)[code]
        row, is_open = _find(self.key, keys)
        enters &= ~is_open
        room = self._most - self._known.size
        if keys.size - np.count_nonzero(is_known) > room:
            is_new = np.flatnonzero(~is_known)
            enters[is_new[np.argsort(first[is_new], kind="stable")[max(room, 0) :]]] = False
        pi = np.round((share - held) / np.maximum(1 - held, 1e-12), 12)[code[enters]]
        side = candidate[enters]
        self._remember(keys[enters], place[enters], is_known[enters], side, share)
        self._open(keys[enters], row[enters], pi, side, start[enters], share)
        # Windows that were open move up by as many as were opened before them.
        row = row + np.cumsum(enters) - enters
        row[~(is_open | enters)] = -1
        return pi, enters, row

    def _remember(
        self, keys: NDArray[np.uint64], place: IntArray, is_known: BoolArray, side: BoolArray, share: float
    ) -> None:
        """Note what is known now of the side of these users, who lie or belong at `place`."""
        codes = np.where(side, np.uint16(_OURS), np.uint16(self._code_of(share)))
        self._code[place[is_known]] = codes[is_known]
        at = place[~is_known]
        at += np.arange(at.size)
        self._known = _merged(self._known, keys[~is_known], at)
        self._code = _merged(self._code, codes[~is_known], at)

    def _open(
        self,
        keys: NDArray[np.uint64],
        place: IntArray,
        pi: FloatArray,
        side: BoolArray,
        start: FloatArray,
        share: float,
    ) -> None:
        """Open windows for these users."""
        at = place + np.arange(place.size)
        self.key = _merged(self.key, keys, at)
        self.start = _merged(self.start, start, at)
        self.share = _merged(self.share, np.full(keys.size, share), at)
        self.pi = _merged(self.pi, pi, at)
        self.candidate = _merged(self.candidate, side, at)
        self.count = _merged(self.count, np.zeros(keys.size, np.int32), at)
        self.bad = _merged(self.bad, np.zeros((len(self.bad), keys.size), np.int32), at)

    def fits(self, rows: IntArray, share: float, candidate: BoolArray, time: FloatArray) -> BoolArray:
        """Whether requests belong into these open windows."""
        start = self.start[rows]
        inside = (self.share[rows] == share) & (candidate == self.candidate[rows])
        return inside & (time >= start) & (time <= start + self._window.seconds)

    def count_in(self, rows: IntArray) -> BoolArray:
        """Count requests into their windows; which of them are among the first that a window holds.

        `rows` rise, and those of one window are in order of arrival; -1 belongs to no window.
        """
        counted = rows >= 0
        inside = rows[counted]
        adding = np.bincount(inside, minlength=self.key.size)
        room = self._window.requests - self.count
        if np.any(adding > room):
            first = np.cumsum(adding) - adding
            counted[counted] = np.arange(inside.size) - first[inside] < room[inside]
            adding = np.minimum(adding, room)
        self.count += adding.astype(np.int32)
        return counted

    def add(self, rows: IntArray, bad: BadArray) -> None:
        """Add the values of counted requests, shape (metrics, n), to their windows; -1 is none."""
        for index, values in enumerate(bad):
            hit = np.flatnonzero(values != 0)
            row = rows[hit]
            if row.size and row.min() < 0:
                hit, row = hit[row >= 0], row[row >= 0]
            np.add.at(self.bad[index], row, values[hit].astype(np.int32))

    def over(self, watermark: float) -> BoolArray:
        """Windows whose time is over."""
        return self.start + self._window.seconds <= watermark

    def moved(self, share: float, time: float) -> BoolArray:
        """Windows of another share that began before requests at this one."""
        return (self.share != share) & (self.start < time)

    def full(self) -> BoolArray:
        """Windows that have all their requests."""
        return self.count >= self._window.requests

    def close(self, rows: BoolArray) -> Closed:
        """Take these windows out."""
        every = bool(rows.all())
        out, kept = (slice(None), slice(0)) if every else (rows, ~rows)
        closed = self.key[out], self.pi[out], self.candidate[out], self.count[out], self.bad[:, out]
        for name in _OPEN:
            setattr(self, name, getattr(self, name)[kept])
        self.bad = self.bad[:, kept]
        return closed

    def _code_of(self, share: float) -> int:
        if share not in self._held[1:]:
            self._held.append(share)
        return self._held.index(share, 1)


def _find(table: NDArray[np.uint64], keys: NDArray[np.uint64]) -> tuple[IntArray, BoolArray]:
    """Where these sorted keys are in a sorted table, or would have to be; and whether they are."""
    if not table.size:
        return np.zeros(keys.size, np.int64), np.zeros(keys.size, np.bool_)
    place = np.searchsorted(table, keys)
    return place, table[np.minimum(place, table.size - 1)] == keys


def _merged(old: NDArray[T], new: NDArray[T], at: IntArray) -> NDArray[T]:
    """Columns (the last axis) of `old`, with those of `new` at these columns of the result."""
    if not new.shape[-1]:
        return old
    if not old.shape[-1]:
        return new
    size = old.shape[-1] + at.size
    is_old = np.ones(size, np.bool_)
    is_old[at] = False
    merged = np.empty((*old.shape[:-1], size), old.dtype)
    merged[..., at] = new
    merged[..., is_old] = old
    return merged
