"""The watch's judge: does the version that serves still keep the service levels of the policy?

Every level is a bound on the mean of a badness in [0, 1] (1 = failed; 1{waited longer than the
budget}; 1 - score), and has a one-sample e-process of its own (`evals.sequential.OneSample`).
Null: at every request, given all before, the expected badness is within the level. Requests need
not be independent for that, nor alike; a noisy user who breaks the level breaks it for real.

A watch has no end, and an e-process that saw a good year has lost all that it bet. So only a part
of the wealth is bet at first, and look j puts 1/(j + 1) of what is left on fresh bets: j looks on,
1/(j(j + 1)) of the first wealth bets on "it starts now". A mixture of e-processes is one, so
P(any false alarm, ever) <= alpha still holds, and a late start costs 2 ln(j) nats, not
everything (with 20% errors against 1%: 60 requests after a month of looks every minute). The
levels share alpha by weight: level w alarms at E >= 1/(alpha w), by the union bound under any
dependence. After an alarm its process begins anew: whether harm goes on is asked afresh.

State is bounded, and plain values: what one run stored, the next one goes on from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.measures import MEASURES, MeasureBudget
from configs.policy import Policy
from configs.section import LatencyBudget
from evals.sequential import BINARY, LEVELS, OneSample, odds_times, times
from evals.verdict import Finding, Outcome, Verdict
from evals.wording import capped_e, e_text

if TYPE_CHECKING:
    import pandas as pd

ERRORS = "errors"
QUALITY = "quality"
_FAMILY = {ERRORS: 0.4, "latency": 0.4, "measures": 0.4, QUALITY: 0.2}
_TAILS = {"p50": 0.5, "p95": 0.05, "p99": 0.01}
_UNSTAKED = 0.5
_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Level:
    """One service level: the mean badness that it allows, and its share of alpha.

    `budget_ms` is set where the badness is 1{waited longer}, `most` where it is 1{the measure is above it}.
    """

    name: str
    limit: float
    weight: float
    budget_ms: float | None = None
    most: float | None = None

    @property
    def gauge(self) -> str:
        """The measure's name, such as ttft_ms; "" for a level of something else."""
        return "" if self.most is None else self.name.partition("/")[0]

    def process(self) -> OneSample:
        """Null: the mean badness is at most the limit."""
        if self.name == ERRORS:
            bets, weights = times(1.5, 2, 3, 5, 10, 30), [0.3, 0.25, 0.15, 0.1, 0.1, 0.1]
        elif self.name == QUALITY:
            bets, weights = odds_times(1.2, 1.5, 2, 4, 10), [0.2] * 5
        else:
            bets, weights = odds_times(1.5, 2, 4, 10), [0.25] * 4
        levels = LEVELS if self.name == QUALITY else BINARY
        return OneSample(self.limit, bets, weights, worse=True, levels=levels, reserve=_UNSTAKED)


def levels_of(policy: Policy) -> tuple[Level, ...]:
    """The policy's service levels, each with its share of alpha; a family that is absent gives its own."""
    watch = policy.watch
    budgets = watch.latency_ms if _budgeted(watch.latency_ms) else policy.canary.latency.budget_ms
    found: dict[str, list[tuple[str, float, float | None, float | None]]] = {}
    failures = 1 - watch.availability if watch.availability is not None else None
    tolerated = watch.error_rate if watch.error_rate is not None else failures
    if tolerated is not None:
        found[ERRORS] = [(ERRORS, tolerated, None, None)]
    if limits := _budgeted(budgets):
        found["latency"] = [(f"latency/{name}", _TAILS[name], limit, None) for name, limit in limits]
    if watch.measures:
        found["measures"] = [
            (f"{measure}/{name}", _TAILS[name], None, limit)
            for measure, about in watch.measures.items()
            for name, limit in _budgeted(about.budget)
        ]
    if watch.quality is not None:
        found[QUALITY] = [(QUALITY, 1 - watch.quality, None, None)]
    total = sum(_FAMILY[family] for family in found)
    return tuple(
        Level(name, limit, _FAMILY[family] / total / len(members), budget, most)
        for family, members in found.items()
        for name, limit, budget, most in members
    )


def _budgeted(budgets: LatencyBudget | MeasureBudget) -> list[tuple[str, float]]:
    """The quantiles that have a budget, with it."""
    found = {name: getattr(budgets, name) for name in _TAILS}
    return [(name, float(limit)) for name, limit in found.items() if limit is not None]


@dataclass(frozen=True, slots=True)
class WatchCounts:
    """What one look saw of the version that serves: counts, and nothing that names anybody.

    `bad` counts requests by level (errors, latency, measures). `known` counts, by level, those whose measure
    is known: an answer that is not streamed has no first token, a failure no price. `stuck` requests are
    still under way and have waited for longer than every budget: they count as slow for this look, and are
    not played yet.
    `quality` counts labelled answers by badness (`evals.sequential.LEVELS`). `minutes` has
    requests and failures by minute of arrival (seconds since the epoch // 60), `slow` the same of
    requests beyond each latency level's budget.
    """

    requests: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)
    stuck: int = 0
    quality: tuple[int, ...] = ()
    minutes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    slow: Mapping[str, Mapping[int, tuple[int, int]]] = field(default_factory=dict)
    known: Mapping[str, int] = field(default_factory=dict)


def count_requests(
    frame: pd.DataFrame, levels: tuple[Level, ...], *, version: str, stuck: int = 0
) -> WatchCounts:
    """Count the requests that were assigned to `version`; `frame` as `Endpoint.observations` has it."""
    ours = frame[frame["version"] == version]
    bad: dict[str, int] = {}
    known: dict[str, int] = {}
    slow: dict[str, dict[int, tuple[int, int]]] = {}
    arrived = np.asarray(ours["time"], float)
    for level in levels:
        if level.name == ERRORS:
            bad[ERRORS] = int(ours["failed"].sum())
        elif level.budget_ms is not None:
            # a failure that came fast is no quick answer
            late = (ours["total_ms"] > level.budget_ms) | ours["failed"]
            bad[level.name] = int(late.sum())
            slow[level.name] = _by_minute(arrived, np.asarray(late, float))
        elif level.most is not None:
            values = np.asarray(ours[level.gauge] if level.gauge in ours.columns else [], float)
            values = values[np.isfinite(values)]
            bad[level.name], known[level.name] = int((values > level.most).sum()), len(values)
    minutes = _by_minute(arrived, np.asarray(ours["failed"], float))
    return WatchCounts(len(ours), bad, stuck, (), minutes, slow, known)


def _by_minute(arrived: NDArray[np.float64], bad: NDArray[np.float64]) -> dict[int, tuple[int, int]]:
    """Requests, and the bad ones among them, by minute of arrival."""
    minutes, which = np.unique(arrived // _MINUTE_S, return_inverse=True)
    counts = zip(minutes, np.bincount(which), np.bincount(which, weights=bad), strict=True)
    return {int(minute): (int(total), int(among)) for minute, total, among in counts}


@dataclass(frozen=True, slots=True)
class Harm:
    """A service level that is broken. `since` and `last` are when this was first and last shown."""

    level: Level
    since: float
    last: float
    finding: Finding


class WatchJudge:
    """The e-processes of one version's watch. State has the policy's size, not the traffic's."""

    def __init__(self, policy: Policy, state: Mapping[str, Any] | None = None) -> None:
        self._watch = policy.watch
        self.levels = levels_of(policy)
        self._processes: dict[str, OneSample] = {}
        self._stakes: dict[str, int] = {}
        self._harms: dict[str, tuple[float, float, Finding]] = {}
        stored = state or {}
        for level in self.levels:
            self._begin(level)
            kept = stored.get(level.name)
            # other limits are other questions: what was bet on the old ones is void
            asked = [level.limit, level.budget_ms, level.most]
            if kept is None or [kept["limit"], kept["budget_ms"], kept.get("most")] != asked:
                continue
            self._processes[level.name].wealth.restore(kept["log_bets"], float(kept["reserve"]))
            self._stakes[level.name] = int(kept["stakes"])
            if kept["harm"] is not None:
                since, last, finding = kept["harm"]
                self._harms[level.name] = (float(since), float(last), _stored_finding(finding))

    def look(self, counts: WatchCounts, *, now: float) -> tuple[Harm, ...]:
        """Play one look; the levels that are broken as of `now`, the clearest first."""
        for level in self.levels:
            units = _units(level, counts)
            if not sum(units):
                continue
            process = self._processes[level.name]
            self._stakes[level.name] += 1
            process.wealth.stake(1 / (self._stakes[level.name] + 1))
            process.update(units)
            stuck = (0, counts.stuck) if level.budget_ms is not None else (0,) * len(units)
            log_e = max(float(process.log_e), float(process.log_e_with(stuck)))
            if log_e >= math.log(self._needed(level)):
                since = self._harms.get(level.name, (now,))[0]
                self._harms[level.name] = (since, now, self._finding(level, units, counts.stuck, log_e))
                self._begin(level)
        return self.harms(now)

    def harms(self, now: float) -> tuple[Harm, ...]:
        """The levels that are broken as of `now`; what was not shown again for `clear_s` is over."""
        for name, (_, last, _) in list(self._harms.items()):
            if now - last > self._watch.clear_s:
                del self._harms[name]
        found = [Harm(level, *self._harms[level.name]) for level in self.levels if level.name in self._harms]
        return tuple(sorted(found, key=lambda harm: -(harm.finding.evidence or 0.0)))

    def verdict(self, counts: WatchCounts, now: float) -> Verdict:
        """FAIL where a level is broken; otherwise INCONCLUSIVE, for nobody can show that all will be well."""
        harms = self.harms(now)
        if harms:
            return Verdict(Outcome.FAIL, harms[0].finding.reason, tuple(harm.finding for harm in harms))
        if not self.levels:
            return Verdict(Outcome.INCONCLUSIVE, "the policy has no service level to watch")
        if not counts.requests:
            return Verdict(Outcome.INCONCLUSIVE, "no requests since the last look")
        shares = {name: (bad, counts.known.get(name, counts.requests)) for name, bad in counts.bad.items()}
        rates = ", ".join(f"{name} {bad / total:.2%}" for name, (bad, total) in shares.items() if total)
        return Verdict(Outcome.INCONCLUSIVE, f"no evidence of harm: {counts.requests} requests, {rates}")

    def numbers(self) -> dict[str, float]:
        """log10 of every e-value, for plots and people."""
        return {name: float(process.log_e) / math.log(10) for name, process in self._processes.items()}

    def as_dict(self) -> dict[str, Any]:
        """The state as plain values; `WatchJudge(policy, state)` goes on from it."""
        kept: dict[str, Any] = {}
        for level in self.levels:
            wealth = self._processes[level.name].wealth
            harm = self._harms.get(level.name)
            kept[level.name] = {
                "limit": level.limit,
                "budget_ms": level.budget_ms,
                "most": level.most,
                "log_bets": [float(bet) for bet in wealth.log_bets],
                "reserve": wealth.reserve,
                "stakes": self._stakes[level.name],
                "harm": None if harm is None else [harm[0], harm[1], asdict(harm[2])],
            }
        return kept

    def _begin(self, level: Level) -> None:
        self._processes[level.name] = level.process()
        self._stakes[level.name] = 1

    def _needed(self, level: Level) -> float:
        return 1 / (self._watch.alpha * level.weight)

    def _finding(self, level: Level, units: tuple[int, ...], stuck: int, log_e: float) -> Finding:
        total = sum(units)
        values = LEVELS if level.name == QUALITY else BINARY
        rate = sum(count * float(value) for count, value in zip(units, values, strict=True)) / total
        if level.name == QUALITY:
            words = f"mean score {1 - rate:.3f} of {total} labelled answers, the level is {1 - level.limit:g}"
        elif level.budget_ms is not None:
            words = f"{rate:.1%} of {total} requests waited over {level.budget_ms:g} ms"
            words += f", the level is {level.limit:g}" + (f"; {stuck} more still wait" if stuck else "")
        elif level.most is not None:
            words = f"{MEASURES[level.gauge]}: {rate:.1%} of {total} requests were over {level.most:g}"
            words += f", the level is {level.limit:g}"
        else:
            words = f"{rate:.1%} of {total} requests failed, the level is {level.limit:.2%}"
        needed = self._needed(level)
        return Finding(
            level.name,
            Outcome.FAIL,
            f"{level.name}: {words} (E = {e_text(log_e)} of {needed:g})",
            champion=rate,
            evidence=capped_e(log_e),
            needed=needed,
            units=total,
        )


def _stored_finding(kept: Mapping[str, Any]) -> Finding:
    return Finding(
        str(kept["metric"]),
        Outcome.FAIL,
        str(kept["reason"]),
        champion=float(kept["champion"]),
        evidence=float(kept["evidence"]),
        needed=float(kept["needed"]),
        units=int(kept["units"]),
    )


def _units(level: Level, counts: WatchCounts) -> tuple[int, ...]:
    """Units by badness: two kinds for requests, `LEVELS` for scores."""
    if level.name == QUALITY:
        return counts.quality
    bad = counts.bad.get(level.name, 0)
    total = counts.requests if level.most is None else counts.known.get(level.name, 0)
    return (total - bad, bad)
