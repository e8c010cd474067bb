"""What is remembered of users: which share they were seen at, and the windows that are open now.

Two sorted tables. The known users: a hash and two bytes for what is known of their side, for as long
as the release lasts. The open windows: few, for they close within seconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from configs.policy import Window
from evals.badness import BadArray, BoolArray, IntArray
from evals.sequential import FloatArray

USERS_MAX = 5_000_000
"""Users remembered in a release, at ten bytes each; who comes later is no unit of evidence."""
_OURS = 0
"""Code of users on the candidate's side: nothing is left to draw."""
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

    def rows(self, keys: NDArray[np.uint64]) -> IntArray:
        """Rows of the open windows of these users (sorted), -1 where there is none."""
        return _find(self.key, keys)

    def draw(self, keys: NDArray[np.uint64], first: IntArray, share: float) -> tuple[FloatArray, BoolArray]:
        """Which of these users (sorted; `first` orders their arrival) this share draws afresh.

        Returns their pi, and a mask over `keys`. Of users never seen only as many as may be remembered.
        """
        at = _find(self._known, keys)
        is_new = at < 0
        held = np.zeros(keys.size)
        held[~is_new] = np.asarray(self._held)[self._code[at[~is_new]]]
        enters = (share > held + 1e-12) & (self.rows(keys) < 0)
        room = self._most - self._known.size
        if np.count_nonzero(is_new) > room:
            latest = np.flatnonzero(is_new)[np.argsort(first[is_new], kind="stable")[max(room, 0) :]]
            enters[latest] = False
        pi = np.round((share - held[enters]) / (1 - held[enters]), 12)
        return pi, enters

    def enter(
        self,
        keys: NDArray[np.uint64],
        pi: FloatArray,
        candidate: BoolArray,
        *,
        share: float,
        start: FloatArray,
    ) -> None:
        """Open a window for each of these users (sorted), and remember their side."""
        if not keys.size:
            return
        codes = np.where(candidate, _OURS, self._code_of(share)).astype(np.uint16)
        at = _find(self._known, keys)
        self._code[at[at >= 0]] = codes[at >= 0]
        fresh = at < 0
        place = np.searchsorted(self._known, keys[fresh])
        self._known = np.insert(self._known, place, keys[fresh])
        self._code = np.insert(self._code, place, codes[fresh])

        place = np.searchsorted(self.key, keys)
        new = {
            "key": keys,
            "start": start,
            "share": np.full(keys.size, share),
            "pi": pi,
            "candidate": candidate,
            "count": np.zeros(keys.size, np.int32),
        }
        for name, values in new.items():
            setattr(self, name, np.insert(getattr(self, name), place, values))
        self.bad = np.insert(self.bad, place, 0, axis=1)

    def fits(self, rows: IntArray, share: float, candidate: BoolArray, time: FloatArray) -> BoolArray:
        """Whether requests belong into these open windows."""
        start = self.start[rows]
        inside = (self.share[rows] == share) & (candidate == self.candidate[rows])
        return inside & (time >= start) & (time <= start + self._window.seconds)

    def fill(self, rows: IntArray, bad: BadArray) -> None:
        """Add requests to their windows, first come first counted, up to the window's size."""
        adding = np.bincount(rows, minlength=self.key.size)
        if np.any(self.count + adding > self._window.requests):
            fits = self.count[rows] + _rank(rows) < self._window.requests
            rows, bad = rows[fits], bad[:, fits]
            adding = np.bincount(rows, minlength=self.key.size)
        self.count += adding.astype(np.int32)
        for index, values in enumerate(bad):
            hit = np.flatnonzero(values)
            if hit.size:
                added = np.bincount(rows[hit], weights=values[hit], minlength=self.key.size)
                self.bad[index] += added.astype(np.int32)

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
        closed = self.key[rows], self.pi[rows], self.candidate[rows], self.count[rows], self.bad[:, rows]
        for name in _OPEN:
            setattr(self, name, getattr(self, name)[~rows])
        self.bad = self.bad[:, ~rows]
        return closed

    def _code_of(self, share: float) -> int:
        if share not in self._held[1:]:
            self._held.append(share)
        return self._held.index(share, 1)


def _find(table: NDArray[np.uint64], keys: NDArray[np.uint64]) -> IntArray:
    """Where these sorted keys are in a sorted table, -1 where they are not."""
    if not table.size:
        return np.full(keys.size, -1, np.int64)
    at = np.minimum(np.searchsorted(table, keys), table.size - 1)
    return np.where(table[at] == keys, at, -1)


def _rank(rows: IntArray) -> IntArray:
    """For each entry, how many equal ones come before it."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.empty(rows.size, np.int64)
    rank[order] = np.arange(rows.size) - np.repeat(starts, np.diff(np.r_[starts, rows.size]))
    return rank
