"""A canary on simulated traffic: the judge, the units and the ramp of a release, on requests that are drawn.

Traffic is the endpoint's own past: its rate, and its requests with their users, errors and times, from
which requests are drawn again. A candidate is the champion with a change: more errors, slower times. One
`play` is one whole release from its first share to a verdict or the horizon. Only where requests come from
is simulated; badness, thresholds, units' values, evidence, verdicts and steps are those of a release.

With `assign_by: user` a user comes again after an exponential time at the user's own past rate, and a unit's
window is taken to last its whole time, so units come a little later than in truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs.policy import Canary
from evals.badness import BadArray, BoolArray, Family, IntArray, badness, families
from evals.canary import CanaryJudge
from evals.decisions import decide
from evals.looks import LatencyThresholds, LookStatistics, StoredLook
from evals.sequential import FloatArray
from evals.tally import Tally
from evals.verdict import Outcome

if TYPE_CHECKING:
    import pandas as pd

PAST_REQUESTS = 500
"""Champion requests from which each play takes its latency thresholds."""
_LOOKS_PER_TIME = 12.0
"""Looks grow rarer, to a twelfth of the time that has passed: a play needs hundreds, not thousands."""
_TAIL = 0.95
_RECORDS_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the endpoint gets: `requests_per_s`, and past requests to draw from, sorted by user.

    Arrays have one entry a request; times in ms. `user` numbers the users from 0, -1 names none;
    `user_rate` (one entry a user) is in requests a second.
    """

    requests_per_s: float
    failed: BoolArray
    service_ms: FloatArray
    total_ms: FloatArray
    user: IntArray
    user_rate: FloatArray

    @classmethod
    def from_requests(cls, frame: pd.DataFrame, *, requests_per_s: float, span_s: float) -> Traffic:
        """From observed requests (columns user, failed, service_ms, total_ms) that came within `span_s`.

        Of many requests the users of a part are taken whole, so that each user keeps all requests.
        """
        names, codes = np.unique(frame["user"].to_numpy(object).astype(str), return_inverse=True)
        user: IntArray = np.where(names[codes] == "", -1, codes).astype(np.int64)
        keep = np.ones(user.size, np.bool_)
        if user.size > _RECORDS_MAX:
            # a named user's number decides, an anonymous request's place
            turn = np.where(user >= 0, user, np.arange(user.size)) * 0.6180339887498949 % 1.0
            keep = turn < _RECORDS_MAX / user.size
        share = float(keep.mean())
        order = np.flatnonzero(keep)[np.argsort(user[keep], kind="stable")]
        named, counts = np.unique(user[order][user[order] >= 0], return_counts=True)
        numbered = np.where(user[order] >= 0, np.searchsorted(named, user[order]), -1)
        made = cls(
            requests_per_s,
            frame["failed"].to_numpy(np.bool_)[order],
            frame["service_ms"].to_numpy(np.float64)[order],
            frame["total_ms"].to_numpy(np.float64)[order],
            numbered,
            counts / max(span_s, 1e-9),
        )
        return made if share == 1.0 else made.with_users(1 / share)

    @classmethod
    def made_up(
        cls,
        rng: np.random.Generator,
        *,
        requests_per_s: float,
        error_rate: float,
        p50_ms: float,
        p99_ms: float,
        users_per_h: float,
    ) -> Traffic:
        """Lognormal times through these quantiles, independent errors; users of equal rates.

        `users_per_h` is how many distinct users come within an hour; 0: requests name none.
        """
        sigma = np.log(p99_ms / p50_ms) / 2.3263478740408408
        service = p50_ms * np.exp(sigma * rng.normal(size=_RECORDS_MAX))
        failed = rng.random(_RECORDS_MAX) < error_rate
        if users_per_h <= 0:
            user, rate = np.full(_RECORDS_MAX, -1, np.int64), np.zeros(0)
        else:
            count = max(1, round(users_per_h))
            user = np.sort(rng.integers(0, count, _RECORDS_MAX))
            rate = np.full(count, requests_per_s / count)
        return cls(requests_per_s, failed, service, service.copy(), user, rate)

    def with_users(self, factor: float) -> Traffic:
        """The same with this many times the users, alike in their requests."""
        copies = max(1, round(factor * self.user_rate.size)) if self.user_rate.size else 0
        return replace(self, user_rate=np.resize(self.user_rate, copies))

    @property
    def error_rate(self) -> float:
        """Share of failed requests."""
        return float(self.failed.mean())

    def quantile_ms(self, q: float) -> float:
        """A quantile of the service time."""
        return float(np.quantile(self.service_ms, q))


@dataclass(frozen=True, slots=True)
class Change:
    """How a candidate differs from the champion.

    `more_errors` is the probability that a request fails which would not have; `slower` multiplies
    every time, `tail` those above the champion's p95.
    """

    name: str
    more_errors: float = 0.0
    slower: float = 1.0
    tail: float = 1.0

    def frame(self, traffic: Traffic, *, candidate: bool) -> pd.DataFrame:
        """The past requests as this version would have answered them, without the added errors."""
        import pandas as pd

        factor = np.full(traffic.failed.size, 1.0)
        if candidate:
            over = traffic.service_ms > traffic.quantile_ms(_TAIL)
            factor = self.slower * np.where(over, self.tail, 1.0)
        service = traffic.service_ms * factor
        total = traffic.total_ms + (service - traffic.service_ms)
        return pd.DataFrame({"failed": traffic.failed, "service_ms": service, "total_ms": total})


@dataclass(frozen=True, slots=True)
class Played:
    """How one release ended: PASS is promoted, FAIL rolled back, ERROR stopped, INCONCLUSIVE undecided.

    `seconds` since the first share, `exposed` requests that the candidate had answered by then.
    """

    outcome: Outcome
    seconds: float
    exposed: int
    step: int


def horizon_s(policy: Canary) -> float:
    """How long a release is played: four times what the clock alone asks for, an hour at least."""
    least = policy.bake_s * (len(policy.steps) - 1) + policy.soak_s
    return max(4 * least, 3600.0)


def play(
    policy: Canary, traffic: Traffic, change: Change, *, by_user: bool, seed: tuple[int, ...], until_s: float
) -> Played:
    """One release. The same seed is the same release. Measures and labels are not simulated."""
    rng = np.random.default_rng(seed)
    policy = policy.model_copy(update={"measures": {}, "quality": None})
    past = rng.integers(0, traffic.service_ms.size, PAST_REQUESTS)
    thresholds = LatencyThresholds.from_past(traffic.service_ms[past][~traffic.failed[past]])
    source = _source(policy, traffic, change, thresholds, rng, by_user=by_user)
    judge = CanaryJudge(policy, thresholds)
    step, step_since, exposed, at_step = 0, 0.0, 0, 0
    now = seen = 0.0
    while now < until_s:
        owed = policy.soak_s if step == len(policy.steps) - 1 else policy.bake_s
        due = now + max(policy.look_every_s, now / _LOOKS_PER_TIME)
        now = min(due, step_since + owed) if step_since + owed > now else due
        # Requests since the last look, as far as they have settled; what came before the step's share
        # came at the share before.
        until = max(now - policy.settle_s, seen)
        tally = source.requests(seen, until, step, step_since)
        seen = until
        exposed += tally.requests[0]
        at_step += sum(tally.requests)
        statistics = LookStatistics(tally.counts.groups(), *tally.requests)
        stored = StoredLook(statistics, step, now - step_since, requests_at_step=at_step)
        decision = decide(policy, judge, stored)
        outcome = decision.look.verdict.outcome
        if outcome is not Outcome.INCONCLUSIVE:
            return Played(outcome, now, exposed, step)
        if decision.following is not None and decision.following.step is not None:
            step, step_since, at_step = decision.following.step, now, 0
    return Played(Outcome.INCONCLUSIVE, now, exposed, step)


# -- where requests come from ------------------------------------------------------------------------


@dataclass(slots=True)
class _Drawn:
    """What came since the last look: the units' counts, and requests of candidate and champion."""

    counts: Tally
    requests: tuple[int, int]


class _Source:
    """Draws requests of both versions; by request each is a unit."""

    def __init__(
        self,
        policy: Canary,
        traffic: Traffic,
        change: Change,
        thresholds: LatencyThresholds,
        rng: np.random.Generator,
    ) -> None:
        self._policy = policy
        self._traffic = traffic
        self._change = change
        self._rng = rng
        self._family: Family = families(policy, thresholds)[0]
        size = traffic.failed.size
        self._bad = {
            candidate: badness(
                self._family,
                thresholds,
                change.frame(traffic, candidate=candidate),
                np.full(size, candidate),
            )[0]
            for candidate in (True, False)
        }
        self._kinds = {candidate: _kinds(bad) for candidate, bad in self._bad.items()}
        self._shares: list[tuple[float, int]] = [(0.0, 0)]

    def requests(self, after: float, until: float, step: int, step_since: float) -> _Drawn:
        """Requests that arrived in (after, until]; `step` is at hand since `step_since`."""
        if self._shares[-1][1] != step:
            self._shares.append((step_since, step))
        tally, ours, theirs = Tally(), 0, 0
        for index, (since, of_step) in enumerate(self._shares):
            end = self._shares[index + 1][0] if index + 1 < len(self._shares) else until
            start, end = max(since, after), min(end, until)
            if start >= end:
                continue
            share = self._policy.steps[of_step] / 100
            count = int(self._rng.poisson(self._traffic.requests_per_s * (end - start)))
            candidate = int(self._rng.binomial(count, share))
            ours, theirs = ours + candidate, theirs + count - candidate
            self._units(tally, start, end, share, (candidate, count - candidate))
        self._close(tally, until)
        return _Drawn(tally, (ours, theirs))

    def _units(self, tally: Tally, start: float, end: float, share: float, requests: tuple[int, int]) -> None:
        for candidate, count in zip((True, False), requests, strict=True):
            kinds, odds = self._kinds[candidate]
            ones = kinds @ self._rng.multinomial(count, odds)
            if candidate:
                ones[0] += self._rng.binomial(count - ones[0], self._change.more_errors)
            tally.close_counted(self._family, share, ones, count, candidate=candidate)

    def _close(self, tally: Tally, until: float) -> None:
        """Nothing is open."""

    def _answers(self, records: IntArray, candidate: BoolArray) -> BadArray:
        """How both versions answer these past requests: badness, shape (metrics, n)."""
        bad = np.where(candidate, self._bad[True][:, records], self._bad[False][:, records])
        if self._change.more_errors > 0:
            bad[0] |= candidate & (self._rng.random(records.size) < self._change.more_errors)
        return bad


def _kinds(bad: BadArray) -> tuple[IntArray, FloatArray]:
    """The different columns of a matrix, shape (metrics, k), and how frequent each is."""
    code = (1 << np.arange(len(bad), dtype=np.int64)) @ bad.astype(np.int64)
    _, first, counts = np.unique(code, return_index=True, return_counts=True)
    return bad[:, first].astype(np.int64), counts / counts.sum()


class _UserSource(_Source):
    """The same with users: each gives one unit a share, the mean of a closed first window."""

    def __init__(
        self,
        policy: Canary,
        traffic: Traffic,
        change: Change,
        thresholds: LatencyThresholds,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(policy, traffic, change, thresholds, rng)
        users = traffic.user_rate.size
        of_users = np.searchsorted(traffic.user, np.arange(users + 1))
        known = max(int(traffic.user.max(initial=-1)) + 1, 1)
        like = np.arange(users) % known
        self._first, self._count = of_users[like], np.maximum((of_users[1:] - of_users[:-1])[like], 1)
        self._bucket = rng.random(users)
        self._held = np.zeros(users)
        self._next = rng.exponential(1 / traffic.user_rate)
        self._share = 0.0
        self._open: list[tuple[float, NDArray[np.uint64], FloatArray, BoolArray, IntArray, BadArray]] = []

    def _units(self, tally: Tally, start: float, end: float, share: float, requests: tuple[int, int]) -> None:
        rate, rng = self._traffic.user_rate, self._rng
        if share != self._share:
            again = self._next < start
            self._next[again] = start + rng.exponential(1 / rate[again])
            self._share = share
        users = np.flatnonzero((self._next < end) & (self._held < share - 1e-12))
        anonymous = float(np.mean(self._traffic.user < 0))
        if anonymous > 0:
            drawn = rng.binomial(requests, anonymous)
            super()._units(tally, start, end, share, (int(drawn[0]), int(drawn[1])))
        if not users.size:
            return
        held, candidate = self._held[users], self._bucket[users] < share
        pi = np.round((share - held) / (1 - held), 12)
        tally.enter(self._family, pi, candidate)
        self._held[users] = np.where(candidate, 1.0, share)
        window = self._policy.window
        count = np.minimum(1 + rng.poisson(rate[users] * window.seconds), window.requests)
        owner = np.repeat(np.arange(users.size), count)
        place = (rng.random(owner.size) * self._count[users][owner]).astype(np.int64)
        records = np.minimum(self._first[users][owner] + place, self._traffic.failed.size - 1)
        bad = self._answers(records, candidate[owner])
        sums = np.stack([np.bincount(owner, weights=row, minlength=users.size) for row in bad])
        key = rng.integers(0, 2**63, users.size).astype(np.uint64)
        closes = end if window.requests == 1 else end + window.seconds
        self._open.append((closes, key, pi, candidate, count, sums.astype(np.int16)))

    def _close(self, tally: Tally, until: float) -> None:
        for closes, key, pi, candidate, count, bad in self._open:
            if closes <= until:
                tally.close(self._family, key, pi, candidate, count.astype(np.int32), bad.astype(np.int32))
        self._open = [one for one in self._open if one[0] > until]


def _source(
    policy: Canary,
    traffic: Traffic,
    change: Change,
    thresholds: LatencyThresholds,
    rng: np.random.Generator,
    *,
    by_user: bool,
) -> _Source:
    named = by_user and traffic.user_rate.size > 0
    return (_UserSource if named else _Source)(policy, traffic, change, thresholds, rng)
