"""How fast an objective's budget is spent: the burn rates of Google's SRE workbook.

The objective is the availability, or what a latency percentile says: 95% of the requests within the
budget of p95. A rate of 1 spends exactly the budget (1 - objective) in its period of 30 days. A rule
alerts when both of its windows burn at its rate: the long one shows that it matters, the short one
that it still goes on, so that the alert ends soon after its cause (chapter 5, 'Alerting on SLOs', 6:
multiwindow, multi-burn-rate). These alert people; they never roll back: they are thresholds, and
carry no bound on false alarms.

Buckets are a minute wide for two hours and half an hour wide after that: 264 of them for 3 days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.watch import BurnWindow

BAD_MIN = 10
"""Fewer bad requests in the long window never alert: at little traffic one would be a fire."""
_FINE_S = 60
_FINE_FOR_S = 7200
_COARSE_S = 1800

Bucket = tuple[float, int, int, int]
"""Start (seconds since the epoch), width in seconds, requests, bad ones among them."""


@dataclass(frozen=True, slots=True)
class Burn:
    """A rule that alerts, with the rate of both windows (times the budget's even speed)."""

    rule: BurnWindow
    long_rate: float
    short_rate: float
    requests: int
    bad: int

    def reason(self, budget: str, did: str) -> str:
        """One sentence for people: which budget it is ("error budget"), what bad requests did ("failed")."""
        return (
            f"the {budget} burns {self.long_rate:.1f} times too fast over {self.rule.long_s / 3600:g} h "
            f"and {self.short_rate:.1f} times in {self.rule.short_s / 60:g} min (limit {self.rule.rate:g}), "
            f"{self.bad} of {self.requests} requests {did}"
        )


def add_minutes(
    buckets: Sequence[Bucket], minutes: Mapping[int, tuple[int, int]], *, now: float, keep_s: float
) -> tuple[Bucket, ...]:
    """The buckets with new minutes added; old ones merged into wider ones, those beyond `keep_s` gone."""
    merged: dict[tuple[float, int], list[int]] = {}
    fresh = [(float(minute * _FINE_S), _FINE_S, *counts) for minute, counts in minutes.items()]
    for start, width, requests, bad in (*buckets, *fresh):
        if start + width < now - keep_s:
            continue
        is_fine = width == _FINE_S and start >= now - _FINE_FOR_S
        wide = _FINE_S if is_fine else _COARSE_S
        found = merged.setdefault((start // wide * wide, wide), [0, 0])
        found[0] += requests
        found[1] += bad
    return tuple((start, width, found[0], found[1]) for (start, width), found in sorted(merged.items()))


def burns(
    rules: Sequence[BurnWindow], objective: float, buckets: Sequence[Bucket], *, now: float
) -> tuple[Burn, ...]:
    """The rules that alert now."""
    found: list[Burn] = []
    for rule in rules:
        requests, bad = _within(buckets, now - rule.long_s)
        short_requests, short_bad = _within(buckets, now - rule.short_s)
        if bad < BAD_MIN or not short_requests:
            continue
        budget = 1 - objective
        long_rate, short_rate = bad / requests / budget, short_bad / short_requests / budget
        if long_rate >= rule.rate and short_rate >= rule.rate:
            found.append(Burn(rule, long_rate, short_rate, requests, bad))
    return tuple(found)


def _within(buckets: Sequence[Bucket], since: float) -> tuple[int, int]:
    """Requests and bad ones of the buckets whose middle lies after `since`."""
    inside = [bucket for bucket in buckets if bucket[0] + bucket[1] / 2 >= since]
    return sum(bucket[2] for bucket in inside), sum(bucket[3] for bucket in inside)
