"""From observed requests to units of evidence: the unit is what was randomised.

A test is valid only if each of its factors belongs to one fresh random assignment, with the
probability of that assignment. `UnitTracker` turns requests into such units.

assign_by: request. The gateway draws a bucket for each request, so each request is a unit and
pi is the effective share at its arrival. The same holds for requests that name no user.

assign_by: user. A user's bucket U is uniform in [0, 1), fixed by the salt, and
a user is the candidate's while U < share. So
- a user first seen at share s is the candidate's with probability s;
- a user last known on the champion's side at share h has U >= h, and nothing else is known of U,
  for what was observed so far depended on U only through U >= h. When the share rises to s > h
  this user's side is drawn afresh: P(candidate) = (s - h)/(1 - h), independent of the past;
- a user who is the candidate's stays there: no randomness is left, so no further evidence.
Hence pi = (s - h)/(1 - h) with h = 0 for new users, and a user gives at most one unit per share.
A unit's value is the mean badness of the user's closed first window at that share: bounded, one
value however heavy the traffic, so that users may differ as they like and their requests depend on
each other as they like. Given the past, its factor has expectation at most 1 if the candidate
treats re-drawn users no worse than the champion does; so the product over units is a
supermartingale. Per-request factors would not be: a returning user's side is no longer random.

The mean is quantised to twentieths by rounding up or down with the right odds (decided by a hash
of the user, so recomputable), which leaves its expectation untouched.

Shares of 0 and 1 choose nothing and carry no evidence. Time is an argument: a request younger than
`settle_s` waits until slower ones that arrived before it have had their chance to report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from configs.policy import Canary
from evals.looks import LatencyThresholds, LookStatistics, UnitGroup, budget_limits, metric_names
from evals.sequential import LEVELS, FloatArray

if TYPE_CHECKING:
    import pandas as pd

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

COLUMNS = ("time", "user", "share", "candidate", "failed", "service_ms", "total_ms")
"""What the tracker reads; the caller adds the bool column `candidate` to an observation frame."""

_STEPS = LEVELS.size - 1


@dataclass(slots=True)
class _Requests:
    """Requests as columns, in order of arrival. `bad` has shape (n, metrics)."""

    time: FloatArray
    share: FloatArray
    candidate: BoolArray
    bad: BoolArray
    key: NDArray[np.uint64]
    anonymous: BoolArray

    def take(self, rows: BoolArray | IntArray | slice) -> _Requests:
        return _Requests(
            self.time[rows],
            self.share[rows],
            self.candidate[rows],
            self.bad[rows],
            self.key[rows],
            self.anonymous[rows],
        )


class _Tally:
    """Counts of one look, by pi."""

    def __init__(self, metrics: tuple[str, ...]) -> None:
        self.metrics = metrics
        self._levels: dict[float, IntArray] = {}
        self._entered: dict[float, IntArray] = {}

    def enter(self, pi: FloatArray, candidate: BoolArray) -> None:
        """First-seen units."""
        for value in np.unique(pi):
            side = candidate[pi == value]
            entered = self._entered.setdefault(float(value), np.zeros(2, np.int64))
            entered += (np.count_nonzero(side), np.count_nonzero(~side))

    def close(self, pi: FloatArray, candidate: BoolArray, levels: IntArray) -> None:
        """Closed units with their level of each metric, shape (n, metrics)."""
        size = LEVELS.size
        offsets = np.arange(len(self.metrics)) * size
        for value in np.unique(pi):
            for arm, side in enumerate((candidate, ~candidate)):
                cells = (levels[(pi == value) & side] + offsets).ravel()
                counted = np.bincount(cells, minlength=offsets.size * size).reshape(-1, size)
                self._of(float(value))[arm] += counted

    def close_requests(self, share: FloatArray, candidate: BoolArray, bad: BoolArray) -> None:
        """Units that are single requests: 0/1 values."""
        for value in np.unique(share):
            for arm, side in enumerate((candidate, ~candidate)):
                rows = (share == value) & side
                ones = np.count_nonzero(bad[rows], axis=0)
                counts = self._of(float(value))[arm]
                counts[:, -1] += ones
                counts[:, 0] += np.count_nonzero(rows) - ones

    def _of(self, pi: float) -> IntArray:
        return self._levels.setdefault(pi, np.zeros((2, len(self.metrics), LEVELS.size), np.int64))

    def groups(self) -> tuple[UnitGroup, ...]:
        """By rising pi."""
        found: list[UnitGroup] = []
        for pi in sorted({*self._levels, *self._entered}):
            entered = self._entered.get(pi, np.zeros(2, np.int64))
            candidate, champion = ({}, {})
            if pi in self._levels:
                candidate, champion = (
                    {metric: tuple(row) for metric, row in zip(self.metrics, arm.tolist(), strict=True)}
                    for arm in self._levels[pi]
                )
            found.append(UnitGroup(pi, int(entered[0]), int(entered[1]), candidate, champion))
        return tuple(found)


class _Users:
    """One row a user, sorted by the hash of the user. Bounded by the number of distinct users."""

    def __init__(self, metrics: int) -> None:
        self.key: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.held: FloatArray = np.zeros(
            0
        )  # share at which the user is known to be the champion's; 1: candidate's
        self.open: BoolArray = np.zeros(0, np.bool_)
        self.start: FloatArray = np.zeros(0)
        self.share: FloatArray = np.zeros(0)
        self.pi: FloatArray = np.zeros(0)
        self.candidate: BoolArray = np.zeros(0, np.bool_)
        self.count: IntArray = np.zeros(0, np.int64)
        self.bad: NDArray[np.int32] = np.zeros((0, metrics), np.int32)

    def rows(self, keys: NDArray[np.uint64]) -> IntArray:
        """Rows of these distinct users; unknown ones are added with nothing known."""
        if self.key.size:
            at = np.minimum(np.searchsorted(self.key, keys), self.key.size - 1)
            fresh = keys[self.key[at] != keys]
        else:
            fresh = keys
        if fresh.size:
            order = np.argsort(np.concatenate([self.key, fresh]), kind="stable")
            for name in ("key", "held", "open", "start", "share", "pi", "candidate", "count", "bad"):
                column = getattr(self, name)
                added = fresh if name == "key" else np.zeros((fresh.size, *column.shape[1:]), column.dtype)
                setattr(self, name, np.concatenate([column, added])[order])
        return np.searchsorted(self.key, keys)

    def close(self, rows: IntArray, tally: _Tally) -> None:
        """Close the windows of these rows and count their mean badness."""
        if not rows.size:
            return
        self.open[rows] = False
        exact = np.round(self.bad[rows] / self.count[rows, None] * _STEPS, 9)
        floor = np.floor(exact)
        dither = ((self.key[rows] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)).astype(
            np.float64
        ) / 2.0**53
        levels = (floor + (dither[:, None] < exact - floor)).astype(np.int64)
        tally.close(self.pi[rows], self.candidate[rows], levels)


class UnitTracker:
    """Turns observed requests into per-look sufficient statistics, for one salt.

    Keep one tracker as long as the salt that draws the users stays: under a new one all users are
    drawn anew. The caller leaves out rows of other releases. State is one row a user (none when requests
    are the units) and the requests that have not settled.
    """

    def __init__(
        self, policy: Canary, assign_by: Literal["user", "request"], thresholds: LatencyThresholds
    ) -> None:
        self._policy = policy
        self._by_user = assign_by == "user"
        self._metrics = metric_names(policy, thresholds)
        self._limits = np.array(list(thresholds.ms.values()))
        self._budgets = np.array(list(budget_limits(policy).values()))
        self._users = _Users(len(self._metrics))
        self._waiting: _Requests | None = None

    @property
    def users(self) -> int:
        """Distinct users seen so far."""
        return int(self._users.key.size)

    def observe(self, frame: pd.DataFrame, now: float) -> LookStatistics:
        """The statistics of one look: `frame` holds what finished since the last one.

        `frame` has the columns of `COLUMNS` (others are ignored); `now` is in seconds since the
        epoch, as its `time`. Raises ValueError where a column is missing.
        """
        requests = self._read(frame)
        if self._waiting is not None:
            requests = _join(self._waiting, requests)
        watermark = now - self._policy.settle_s
        settled = requests.time <= watermark
        self._waiting = requests.take(~settled)
        requests = requests.take(settled)
        requests = requests.take(np.argsort(requests.time, kind="stable"))
        tally = _Tally(self._metrics)
        alone = requests.anonymous if self._by_user else np.ones(requests.time.size, np.bool_)
        if alone.any():
            single = requests.take(alone)
            tally.enter(single.share, single.candidate)
            tally.close_requests(single.share, single.candidate, single.bad)
        late = np.zeros(2, np.int64)
        if self._by_user:
            named = requests.take(~alone)
            for start, end in _runs(named.share):
                late += self._segment(named.take(slice(start, end)), tally)
            over = self._users.open & (self._users.start + self._policy.window.seconds <= watermark)
            self._users.close(np.flatnonzero(over), tally)
        ours = int(np.count_nonzero(requests.candidate))
        theirs = requests.candidate.size - ours
        return LookStatistics(tally.groups(), ours, theirs, int(late[0]), int(late[1]))

    def _read(self, frame: pd.DataFrame) -> _Requests:
        """The columns that matter, for the requests that were randomised."""
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise ValueError(
                f"Observations lack {', '.join(missing)}; found {', '.join(map(str, frame.columns))}."
            )
        share = frame["share"].to_numpy(np.float64)
        drawn = (share > 0) & (share < 1)
        if not drawn.all():
            frame, share = frame.loc[drawn], share[drawn]
        candidate = frame["candidate"].to_numpy(np.bool_)
        keys, anonymous = (
            _user_keys(np.asarray(frame["user"], dtype=object))
            if self._by_user
            else (np.zeros(share.size, np.uint64), np.ones(share.size, np.bool_))
        )
        time = frame["time"].to_numpy(np.float64)
        return _Requests(time, share, candidate, self._badness(frame, candidate), keys, anonymous)

    def _badness(self, frame: pd.DataFrame, candidate: BoolArray) -> BoolArray:
        """Shape (n, metrics). A latency that nobody measured is the client's wait, else endless."""
        total = frame["total_ms"].to_numpy(np.float64)
        total = np.where(np.isfinite(total) & (total >= 0), total, np.inf)
        service = frame["service_ms"].to_numpy(np.float64)
        service = np.where(np.isfinite(service) & (service >= 0), service, total)
        latency = self._policy.latency
        bad = np.empty((total.size, len(self._metrics)), np.bool_)
        bad[:, 0] = frame["failed"].to_numpy(np.bool_)
        column = 1
        for slack in (latency.tolerance, latency.margin):
            adjusted = np.where(candidate, service / (1 + slack), service)
            for limit in self._limits:
                bad[:, column] = adjusted > limit
                column += 1
        for limit in self._budgets:
            bad[:, column] = total > limit
            column += 1
        return bad

    def _segment(self, requests: _Requests, tally: _Tally) -> IntArray:
        """Requests of named users at one share, in order of arrival; returns late requests per arm."""
        import pandas as pd

        users, share = self._users, float(requests.share[0])
        labels, distinct = pd.factorize(requests.key)
        codes, keys = labels.astype(np.int64), np.asarray(distinct, np.uint64)
        rows = users.rows(keys)
        moved = users.open & (users.share != share) & (users.start < requests.time[0])
        users.close(np.flatnonzero(moved), tally)

        first = np.empty(keys.size, np.int64)
        first[codes[::-1]] = np.arange(codes.size - 1, -1, -1)
        enters = ~users.open[rows] & (share > users.held[rows] + 1e-12)
        into, entry = rows[enters], first[enters]
        side = requests.candidate[entry]
        pi = np.round((share - users.held[into]) / (1 - users.held[into]), 12)
        tally.enter(pi, side)
        users.open[into], users.start[into], users.share[into] = True, requests.time[entry], share
        users.pi[into], users.candidate[into] = pi, side
        users.count[into], users.bad[into] = 0, 0
        users.held[into] = np.where(side, 1.0, share)

        row = rows[codes]
        inside = (users.share[row] == share) & (requests.candidate == users.candidate[row])
        inside &= (requests.time >= users.start[row]) & (
            requests.time <= users.start[row] + self._policy.window.seconds
        )
        late = inside & ~users.open[row] & (users.count[row] < self._policy.window.requests)
        inside &= users.open[row]
        self._fill(codes[inside], rows, requests.bad[inside])
        users.close(rows[users.open[rows] & (users.count[rows] >= self._policy.window.requests)], tally)
        ours = np.count_nonzero(late & requests.candidate)
        return np.array([ours, np.count_nonzero(late) - ours])

    def _fill(self, codes: IntArray, rows: IntArray, bad: BoolArray) -> None:
        """Add requests to their users' open windows, first come first counted, up to the window's size."""
        import pandas as pd

        users, size = self._users, self._policy.window.requests
        adding = np.bincount(codes, minlength=rows.size)
        if np.any(users.count[rows] + adding > size):
            rank = pd.Series(codes).groupby(codes).cumcount().to_numpy()
            fits = users.count[rows][codes] + rank < size
            codes, bad = codes[fits], bad[fits]
            adding = np.bincount(codes, minlength=rows.size)
        users.count[rows] += adding
        for metric in range(bad.shape[1]):
            hit = np.bincount(codes[bad[:, metric]], minlength=rows.size)
            users.bad[rows, metric] += hit.astype(np.int32)


def _user_keys(user: NDArray[np.object_]) -> tuple[NDArray[np.uint64], BoolArray]:
    """A 64-bit hash of each user, and whether the request named none."""
    import pandas as pd
    from pandas.core.util.hashing import hash_array

    codes, names = pd.factorize(user, use_na_sentinel=False)
    names = np.asarray(["" if pd.isna(name) else str(name) for name in names], dtype=object)
    hashes = np.asarray(hash_array(names, categorize=False), np.uint64)
    return hashes[codes], (names == "").astype(np.bool_)[codes]


def _join(first: _Requests, second: _Requests) -> _Requests:
    return _Requests(
        *(
            np.concatenate([getattr(first, name), getattr(second, name)])
            for name in ("time", "share", "candidate", "bad", "key", "anonymous")
        )
    )


def _runs(values: FloatArray) -> list[tuple[int, int]]:
    """Bounds of the runs of equal values."""
    if not values.size:
        return []
    cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), values.size], strict=True))
