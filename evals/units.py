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

Each family of metrics (`evals.badness`) is a game of its own: a request that the family does not
know does not exist there, and a user enters with the first known request. Labels come late, so the
quality game is played in the order in which labels come. In each game everything is conditioned on
that game's own past, where the argument above holds word for word, as long as whether and when a
value becomes known depends on the user and the request, not on who answered.

Users are remembered as a hash and the share they were seen at, ten bytes each, and only the first
`USERS_MAX` of a release: who comes later is no unit, whichever side they are on, so the state is
bounded and the tests stay valid.

Shares of 0 and 1 choose nothing and carry no evidence. Time is an argument: a request younger than
`settle_s` waits until slower ones that arrived before it have had their chance to report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from configs.policy import Canary
from evals.badness import LABELLED, BadArray, BoolArray, Family, IntArray, badness, families
from evals.looks import QUALITY, SERVICE, LatencyThresholds, LookStatistics
from evals.sequential import FloatArray
from evals.tally import Tally
from evals.users import Users

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("time", "user", "share", "candidate", "failed", "service_ms", "total_ms")
"""What the tracker reads; the caller adds the bool column `candidate` to an observation frame.

Of the optional columns it reads the policy's measures, `stratum`, and with `quality` also
`request_id` and `quality`.
"""
UNLABELLED_MAX = 200_000
"""Requests that wait for their labels; beyond, the oldest stop waiting."""


@dataclass(slots=True)
class _Requests:
    """Requests as columns, the last axis of each array. `bad` and `known` have one entry a family.

    `id` and `quality` are there only where labels are asked for.
    """

    time: FloatArray
    share: FloatArray
    candidate: BoolArray
    key: NDArray[np.uint64]
    anonymous: BoolArray
    bad: tuple[BadArray, ...]
    known: tuple[BoolArray, ...]
    id: NDArray[np.object_] | None = None
    quality: FloatArray | None = None

    def take(self, rows: BoolArray | IntArray | slice) -> _Requests:
        return _Requests(
            self.time[rows],
            self.share[rows],
            self.candidate[rows],
            self.key[rows],
            self.anonymous[rows],
            tuple(bad[:, rows] for bad in self.bad),
            tuple(known[rows] for known in self.known),
            None if self.id is None else self.id[rows],
            None if self.quality is None else self.quality[rows],
        )

    def join(self, other: _Requests) -> _Requests:
        """These, then the others."""
        return _Requests(
            np.concatenate([self.time, other.time]),
            np.concatenate([self.share, other.share]),
            np.concatenate([self.candidate, other.candidate]),
            np.concatenate([self.key, other.key]),
            np.concatenate([self.anonymous, other.anonymous]),
            tuple(np.concatenate(pair, axis=1) for pair in zip(self.bad, other.bad, strict=True)),
            tuple(np.concatenate(pair) for pair in zip(self.known, other.known, strict=True)),
            None if self.id is None or other.id is None else np.concatenate([self.id, other.id]),
            None
            if self.quality is None or other.quality is None
            else np.concatenate([self.quality, other.quality]),
        )

    def label(self, labels: Mapping[str, float]) -> None:
        """Enter the labels of these requests; the first label of a request stands."""
        if self.id is None or self.quality is None:
            return
        for row in np.flatnonzero(np.isnan(self.quality)):
            self.quality[row] = labels.get(self.id[row], np.nan)


class _Game:
    """The units of one family of metrics: what entered, what is open, what is counted."""

    def __init__(self, family: Family, policy: Canary, *, by_user: bool) -> None:
        self.family = family
        self._window = policy.window
        self._by_user = by_user
        self.users = Users(len(family.metrics), policy.window)
        self._seen_to = -np.inf

    def play(self, requests: _Requests, bad: BadArray, tally: Tally, watermark: float) -> IntArray:
        """Count these requests (in order of arrival); returns how many came too late, per arm."""
        late = np.zeros(2, np.int64)
        alone = requests.anonymous if self._by_user else np.ones(requests.time.size, np.bool_)
        if alone.any():
            single = slice(None) if alone.all() else alone
            share, candidate = requests.share[single], requests.candidate[single]
            tally.enter(self.family, share, candidate)
            tally.close_requests(self.family, share, candidate, bad[:, single])
        if self._by_user:
            named = slice(None) if not alone.any() else ~alone
            share, time = requests.share[named], requests.time[named]
            key, candidate, bad = requests.key[named], requests.candidate[named], bad[:, named]
            for start, end in _runs(share):
                run = slice(start, end)
                late += self._segment(
                    float(share[start]), time[run], key[run], candidate[run], bad[:, run], tally
                )
            self._close(self.users.over(watermark), tally)
        self._seen_to = watermark
        return late

    def _segment(
        self,
        share: float,
        time: FloatArray,
        key: NDArray[np.uint64],
        candidate: BoolArray,
        bad: BadArray,
        tally: Tally,
    ) -> IntArray:
        """Requests of named users at one share."""
        users = self.users
        order, starts, keys = _by_user(key)
        first = order[starts]
        self._close(users.moved(share, float(time[0])), tally)
        pi, enters, row = users.admit(keys, first, candidate[first], time[first], share=share)
        tally.enter(self.family, pi, candidate[first[enters]])
        row = np.repeat(row, np.diff(starts, append=key.size))
        time, candidate = time[order], candidate[order]
        late = (row < 0) & (time <= self._seen_to)
        ours = np.count_nonzero(late & candidate)
        if users.open_count:
            row[~users.fits(row, share, candidate, time)] = -1
            row[~users.count_in(row)] = -1
            rows = np.empty_like(row)
            rows[order] = row
            users.add(rows, bad)
        self._close(users.full(), tally)
        return np.array([ours, np.count_nonzero(late) - ours])

    def _close(self, rows: BoolArray, tally: Tally) -> None:
        if rows.any():
            tally.close(self.family, *self.users.close(rows))


class UnitTracker:
    """Turns observed requests into per-look sufficient statistics, for one salt.

    Keep one tracker as long as the salt that draws the users stays: under a new one all users are
    drawn anew. The caller leaves out rows of other releases. State is bounded: `USERS_MAX` users a
    family of metrics, `UNLABELLED_MAX` requests without a label, and the requests that have not settled.
    """

    def __init__(
        self,
        policy: Canary,
        assign_by: Literal["user", "request"],
        thresholds: LatencyThresholds,
        *,
        quality: bool = False,
    ) -> None:
        self._policy = policy
        self._by_user = assign_by == "user"
        self._thresholds = thresholds
        self._games = [
            _Game(family, policy, by_user=self._by_user) for family in families(policy, thresholds)
        ]
        self._labelled = _Game(LABELLED, policy, by_user=self._by_user) if quality else None
        self._waiting: _Requests | None = None
        self._unlabelled: _Requests | None = None

    @property
    def users(self) -> int:
        """Distinct users seen so far."""
        return self._games[0].users.seen

    def observe(
        self, frame: pd.DataFrame, now: float, labels: Mapping[str, float] | None = None
    ) -> LookStatistics:
        """The statistics of one look: `frame` holds what finished since the last one.

        `frame` has the columns of `COLUMNS` and any optional ones (others are ignored); `now` is in
        seconds since the epoch, as its `time`. `labels` are scores in [0, 1] by request id that came
        since the last look, also of requests of earlier looks; labels of unknown requests are ignored.
        Raises ValueError where a column is missing.
        """
        requests = self._read(frame)
        if self._waiting is not None and self._waiting.time.size:
            requests = self._waiting.join(requests)
        if labels:
            requests.label(labels)
        watermark = now - self._policy.settle_s
        settled = requests.time <= watermark
        self._waiting = requests.take(~settled)
        if not settled.all():
            requests = requests.take(settled)
        if np.any(requests.time[1:] < requests.time[:-1]):
            requests = requests.take(np.argsort(requests.time, kind="stable"))
        tally = Tally()
        late = np.zeros(2, np.int64)
        for game, bad, known in zip(self._games, requests.bad, requests.known, strict=True):
            if known.all():
                came_late = game.play(requests, bad, tally, watermark)
            else:
                came_late = game.play(requests.take(known), bad[:, known], tally, watermark)
            if game.family.gauge == SERVICE:
                late += came_late
        if self._labelled is not None:
            self._play_labelled(self._labelled, requests, labels, tally, watermark)
        ours = int(np.count_nonzero(requests.candidate))
        theirs = requests.candidate.size - ours
        return LookStatistics(tally.groups(), ours, theirs, int(late[0]), int(late[1]))

    def _play_labelled(
        self,
        game: _Game,
        requests: _Requests,
        labels: Mapping[str, float] | None,
        tally: Tally,
        watermark: float,
    ) -> None:
        """Bet on the requests whose labels have come; the others go on waiting."""
        if self._unlabelled is not None:
            if labels:
                self._unlabelled.label(labels)
            requests = self._unlabelled.join(requests)
        assert requests.quality is not None
        come = np.isfinite(requests.quality)
        self._unlabelled = requests.take(np.flatnonzero(~come)[-UNLABELLED_MAX:])
        requests = requests.take(come)
        requests = requests.take(np.argsort(requests.time, kind="stable"))
        assert requests.quality is not None
        bad = np.round((1 - requests.quality[None, :]) * LABELLED.scale).astype(np.int16)
        game.play(requests, bad, tally, watermark)

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
        measured = [badness(game.family, self._thresholds, frame, candidate) for game in self._games]
        ids, quality = (None, None) if self._labelled is None else _labels_of(frame)
        return _Requests(
            frame["time"].to_numpy(np.float64),
            share,
            candidate,
            keys,
            anonymous,
            tuple(bad for bad, _ in measured),
            tuple(known for _, known in measured),
            ids,
            quality,
        )


def _labels_of(frame: pd.DataFrame) -> tuple[NDArray[np.object_], FloatArray]:
    """Request ids ('' where there are none) and scores, NaN where no label in [0, 1] has come."""
    ids = (
        np.asarray(frame["request_id"], dtype=object)
        if "request_id" in frame.columns
        else np.full(len(frame), "", dtype=object)
    )
    if QUALITY not in frame.columns:
        return ids, np.full(len(frame), np.nan)
    quality = frame[QUALITY].to_numpy(np.float64, copy=True)
    quality[~((quality >= 0) & (quality <= 1))] = np.nan
    return ids, quality


def _user_keys(user: NDArray[np.object_]) -> tuple[NDArray[np.uint64], BoolArray]:
    """A 64-bit hash of each user, and whether the request named none."""
    import pandas as pd
    from pandas.core.util.hashing import hash_array

    key = np.asarray(hash_array(user, categorize=False), np.uint64)
    none = hash_array(np.array(["", *map(str, (None, np.nan, pd.NA, pd.NaT))], object), categorize=False)
    anonymous = np.isin(key, none)
    if anonymous.any():
        named = user[anonymous]  # somebody may be called "None"
        anonymous[anonymous] = np.asarray(pd.isna(named), np.bool_) | (named == "")
    return key, anonymous


def _by_user(key: NDArray[np.uint64]) -> tuple[IntArray, IntArray, NDArray[np.uint64]]:
    """The order of the requests by user, then by arrival; where in it each user begins; the users."""
    order = np.argsort(key)  # several times as fast as a stable sort, which the packing makes up for
    ordered = key[order]
    begins = np.ones(key.size, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    starts = np.flatnonzero(begins)
    if starts.size < key.size:
        packed = (np.cumsum(begins) << 32) | order
        packed.sort()
        order = packed & 0xFFFFFFFF
        ordered = ordered[starts]
    return order, starts, ordered


def _runs(values: FloatArray) -> list[tuple[int, int]]:
    """Bounds of the runs of equal values."""
    if not values.size:
        return []
    cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), values.size], strict=True))
