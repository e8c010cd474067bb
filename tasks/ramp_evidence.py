"""Where a ramp's evidence comes from: every single request, or counts of whole periods.

The platform says which (`capabilities.per_request_observations`); the ramp treats both alike.
Requests go through the unit tracker. Periods count only where one share held from their first
second to their last, as far as two confirmations of that share by the platform enclose them;
and a look sees as far as the platform's delay lets it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from evals.looks import LatencyThresholds, LookStatistics
from evals.periods import GRID_MS, ArmPeriod, period_statistics, wanted_edges
from evals.units import UnitTracker
from serving.endpoint import SHARE_SCALE, Endpoint, Period, Slot
from serving.records import LookRow
from tasks.bench import Bench
from tasks.labels import newest_label, scores_between

if TYPE_CHECKING:
    import pandas as pd

_PART_ROWS = 50_000
_PAST_S = 3600.0
"""How far back a counting platform is asked for the champion's latencies."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look adds. `watermark` is until when all is seen, in seconds since the epoch.

    `extra` is stored with the look, besides its statistics: what `replay` needs. `answered` are all
    requests by version, whether they count as evidence or not. `cut_short` is the share of answers that
    ended because their tokens were used up, by arm, since the first share; it informs, and decides nothing.
    """

    statistics: LookStatistics
    cursor: str
    watermark: float
    stuck_candidate: int = 0
    stuck_champion: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    is_idle: bool = False
    """Whether nothing at all was read, so that the source is as it was before."""
    answered: Mapping[str, int] = field(default_factory=dict)
    cut_short: Mapping[str, float] = field(default_factory=dict)


class RampEvidence(Protocol):
    """One release's source of evidence, from look to look. `extra` is stored before the first one."""

    @property
    def extra(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def look(self, cursor: str, now: float) -> Seen:
        """What finished since the cursor."""
        ...

    def holds(self, share_bp: int, *, asked_at: float, now: float) -> None:
        """The platform confirmed this share between these two times."""
        ...

    def warm_up(self, until: float) -> None:
        """Times of requests that came before `until` are no evidence."""
        ...

    def replay(self, head: LookRow, looks: Sequence[LookRow]) -> None:
        """Be as after these stored looks; `head` is what was stored before the first."""
        ...


def evidence_of(
    bench: Bench, slot: Slot, first_generation: int, thresholds: LatencyThresholds
) -> RampEvidence:
    """The source that fits the platform. `slot` is the candidate's."""
    if bench.endpoint.capabilities.per_request_observations:
        return RequestEvidence(bench, slot, first_generation, thresholds)
    return PeriodEvidence(bench, slot, thresholds)


# -- single requests ---------------------------------------------------------------------------------


class RequestEvidence:
    """Requests from the platform's log, grouped into units of what was randomised.

    With `canary.quality` a look also takes the labels that came since the one before.
    """

    def __init__(
        self, bench: Bench, slot: Slot, first_generation: int, thresholds: LatencyThresholds
    ) -> None:
        self._bench = bench
        self._slot = slot
        self._first_generation = first_generation
        self._quality = bench.policy.canary.quality is not None
        self._tracker = UnitTracker(
            bench.policy.canary, bench.policy.assign_by, thresholds, quality=self._quality
        )
        self._labels = newest_label(bench) if self._quality else 0
        self._warm_until = 0.0
        self._cut: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()

    @property
    def extra(self) -> dict[str, Any]:
        """The number of the newest label: later ones are the canary's."""
        return {"labels": [self._labels, self._labels]} if self._quality else {}

    def look(self, cursor: str, now: float) -> Seen:
        """Finished requests since the cursor, and how many hang."""
        # Labels first: what they are about is then among the requests.
        labels = self._labels, newest_label(self._bench) if self._quality else 0
        scores = scores_between(self._bench, *labels)
        seen = self._bench.endpoint.observations(cursor, settle_s=self._bench.policy.canary.settle_s)
        self._labels = labels[1]
        ours = self._ours(seen.frame)
        self._note_ends(ours)
        return Seen(
            self._tracker.observe(ours, now, scores),
            seen.cursor,
            now,
            seen.in_flight.get(self._slot, 0),
            seen.in_flight.get(self._slot.sibling, 0),
            {"rows": len(seen.frame), "warm_until": self._warm_until}
            | ({"labels": list(labels)} if self._quality else {}),
            len(seen.frame) == 0 and labels[0] == labels[1],
            answered=Counter(seen.frame["version"].tolist()),
            cut_short={arm: self._cut[arm] / count for arm, count in sorted(self._ended.items())},
        )

    def holds(self, share_bp: int, *, asked_at: float, now: float) -> None:
        """Nothing to note: each request has its own share."""

    def warm_up(self, until: float) -> None:
        """Requests before `until` count for errors and budgets alone."""
        self._warm_until = until

    def replay(self, head: LookRow, looks: Sequence[LookRow]) -> None:
        """Read the stored looks' requests once more: users already counted must not count again."""
        past = _Past(self._bench.endpoint, head.cursor_to)
        for look in looks:
            after, until = look.stats.get("labels", (0, 0))
            self._warm_until = float(look.stats.get("warm_until", 0.0))
            frame = self._ours(past.take(int(look.stats["rows"])))
            self._note_ends(frame)
            self._tracker.observe(frame, look.time, scores_between(self._bench, int(after), int(until)))
        if self._quality:
            self._labels = int((looks[-1] if looks else head).stats["labels"][1])

    def _ours(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of this release's generations, marked with the arm that they were assigned to."""
        ours = frame[frame["generation"] >= self._first_generation]
        is_warm = ours["time"] >= self._warm_until
        return ours.assign(candidate=ours["slot"] == self._slot.value, is_warm=is_warm)

    def _note_ends(self, ours: pd.DataFrame) -> None:
        """Count how the answers of each arm ended, where the platform says so."""
        if "cut_short" not in ours.columns:
            return
        known = ours[ours["cut_short"].notna()]
        for is_candidate, cut in zip(known["candidate"], known["cut_short"], strict=True):
            arm = "candidate" if is_candidate else "champion"
            self._cut[arm] += int(cut)
            self._ended[arm] += 1


class _Past:
    """Requests of looks already taken, read once more a part at a time: a canary may last for days."""

    def __init__(self, endpoint: Endpoint, cursor: str) -> None:
        self._endpoint = endpoint
        seen = endpoint.observations(cursor, limit=_PART_ROWS)
        self._cursor, self._part = seen.cursor, seen.frame

    def take(self, count: int) -> pd.DataFrame:
        """The next `count` requests in the log's order; fewer where the log is gone."""
        import pandas as pd

        while len(self._part) < count:
            seen = self._endpoint.observations(self._cursor, limit=_PART_ROWS)
            if seen.cursor == self._cursor:
                break
            self._cursor = seen.cursor
            self._part = pd.concat([self._part, seen.frame]) if len(self._part) else seen.frame
        taken, self._part = self._part.iloc[:count], self._part.iloc[count:]
        return taken


# -- whole periods -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Span:
    """A share (basis points) that the platform confirmed at `since`, and last at `until`."""

    share_bp: int
    since: float
    until: float


class PeriodEvidence:
    """Counts of whole periods; the cursor is the end of the last period that was read."""

    def __init__(self, bench: Bench, slot: Slot, thresholds: LatencyThresholds) -> None:
        self._bench = bench
        self._slot = slot
        self._thresholds = thresholds
        self._edges = wanted_edges(bench.policy.canary, thresholds)
        self._spans: list[_Span] = []
        self._is_open = False

    @property
    def extra(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def look(self, cursor: str, now: float) -> Seen:
        """The periods that became complete since the cursor and lie within one confirmed share."""
        since, until = float(cursor), watermark(self._bench, now)
        periods: list[Period] = []
        if until > since:
            periods = self._bench.endpoint.periods(since, until, edges_ms=self._edges)
        arms = [
            arm_period(period, span.share_bp / SHARE_SCALE, candidate=period.slot is self._slot)
            for period in periods
            if (span := self._span_of(period)) is not None
        ]
        left_out = sum(period.requests for period in periods) - sum(arm.requests for arm in arms)
        self._spans = [span for span in self._spans if span.until >= since] or self._spans[-1:]
        answered: Counter[str] = Counter()
        for period in periods:
            answered[period.version] += period.requests
        spans = [[span.share_bp, span.since, span.until] for span in self._spans]
        return Seen(
            period_statistics(self._bench.policy.canary, self._thresholds, arms),
            str(max(since, until)),
            max(since, until),
            extra={"rows": sum(arm.requests for arm in arms), "left_out": left_out, "spans": spans},
            answered=answered,
        )

    def holds(self, share_bp: int, *, asked_at: float, now: float) -> None:
        """A renewal prolongs the share's span, a new share begins one; in between nothing is known."""
        newest = self._spans[-1] if self._spans else None
        lease_s = self._bench.policy.canary.lease_s
        same = self._is_open and newest is not None and newest.share_bp == share_bp
        if same and newest is not None and asked_at - newest.until <= lease_s:
            newest.until = now
        else:
            self._spans.append(_Span(share_bp, now, now))
        self._is_open = True

    def warm_up(self, until: float) -> None:
        """Nothing to note: a period in which the share changed is no evidence at all."""

    def replay(self, head: LookRow, looks: Sequence[LookRow]) -> None:
        """The spans as the last look left them; an open one ends there, for nobody confirmed it since."""
        self._is_open = False
        if looks:
            self._spans = [_Span(*span) for span in looks[-1].stats["spans"]]

    def _span_of(self, period: Period) -> _Span | None:
        return next(
            (one for one in self._spans if one.since <= period.start and period.end <= one.until), None
        )


def watermark(bench: Bench, now: float) -> float:
    """Until when the platform's counts are complete: the end of a period, `observation_delay_s` ago."""
    can = bench.endpoint.capabilities
    return math.floor((now - can.observation_delay_s) / can.observation_period_s) * can.observation_period_s


def period_start(bench: Bench, now: float) -> str:
    """A cursor from which nothing before `now` is read."""
    length = bench.endpoint.capabilities.observation_period_s
    return str(math.ceil(now / length) * length)


def arm_period(period: Period, pi: float, *, candidate: bool) -> ArmPeriod:
    """A platform's period as the tests take it."""
    return ArmPeriod(
        pi, candidate, period.start, period.requests, period.failed, period.edges_ms, period.counts
    )


def past_periods(bench: Bench, slot: Slot) -> list[ArmPeriod]:
    """The champion's last hour, with bins fine enough for any quantile. `slot` is the candidate's."""
    until = watermark(bench, bench.clock())
    found = bench.endpoint.periods(until - _PAST_S, until, edges_ms=GRID_MS)
    champion = bench.row().champion
    return [
        arm_period(one, 0.0, candidate=False)
        for one in found
        if one.slot is slot.sibling and one.version == champion
    ]
