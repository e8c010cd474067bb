"""What a canary takes from the champion's past before it begins: latency thresholds, and a plan.

The thresholds stay for the whole canary; they come from past champion requests only. The plan says
what each step is expected to take at the champion's error rate and pace, before anybody waits for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from evals.looks import LatencyThresholds
from evals.periods import past_thresholds
from evals.ramp import StepPlan, plan, plan_words
from serving.endpoint import Slot
from tasks.ramp_evidence import past_periods, period_start
from tasks.release import Release

if TYPE_CHECKING:
    import pandas as pd

REQUESTS_MIN = 200
"""Champion requests before the canary from which the latency thresholds are taken."""
_FRESH = 500
_FRESH_S = 5.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """The champion before the canary: thresholds, how many requests they rest on, where reading ends.

    `error_rate` is a fraction, `units_per_s` how many units of evidence come in a second, both
    versions together: requests, or with `assign_by: user` the users that were seen.
    """

    thresholds: LatencyThresholds
    requests: int
    cursor: str
    error_rate: float
    units_per_s: float

    def plans(self, release: Release) -> tuple[StepPlan, ...]:
        """What each step is expected to take."""
        canary = release.bench.policy.canary
        if self.units_per_s <= 0:
            return ()
        return plan(canary, error_rate=max(self.error_rate, 1e-4), units_per_s=self.units_per_s)

    def as_dict(self, release: Release) -> dict[str, Any]:
        """What is stored with the canary's beginning."""
        return {
            "thresholds": self.thresholds.as_dict(),
            "baseline_requests": self.requests,
            "error_rate": self.error_rate,
            "units_per_s": self.units_per_s,
            "plan": [asdict(step) for step in self.plans(release)],
        }

    def tell(self, release: Release) -> None:
        """Write the plan into the trail, and into the release's progress."""
        bench, plans = release.bench, self.plans(release)
        words = [plan_words(step) for step in plans]
        bench.journal.record(
            bench.name,
            "ramp planned",
            who=release.row.owner,
            now=bench.clock(),
            release_id=release.row.id,
            error_rate=round(self.error_rate, 6),
            units_per_s=round(self.units_per_s, 3),
            steps=words,
        )
        release.progress({"doing": f"ramp planned: {'; '.join(words)}" if words else "ramp begins"})


def take_baseline(release: Release, slot: Slot) -> Baseline:
    """The champion's recent past, waited for where there is too little. `slot` is the candidate's."""
    if release.bench.endpoint.capabilities.per_request_observations:
        return _from_requests(release)
    return _from_periods(release, slot)


def _from_requests(release: Release) -> Baseline:
    """From the champion's requests since the candidate was placed."""
    import pandas as pd

    bench = release.bench
    seen = bench.endpoint.observations(release.placed_cursor)
    cursor, frames = seen.cursor, [seen.frame]
    good = int((~seen.frame["failed"]).sum())
    entered_at, fresh = bench.clock(), 0
    # Fresh requests first: those before ran beside the shadow's replays. But nobody waits long for them,
    # nor longer than a step bakes.
    patience_s = min(_FRESH_S, bench.policy.canary.bake_s)
    while good < REQUESTS_MIN or (fresh < _FRESH and bench.clock() < entered_at + patience_s):
        _await(release, good)
        seen = bench.endpoint.observations(cursor)
        cursor = seen.cursor
        new = int((~seen.frame["failed"]).sum())
        fresh, good = fresh + new, good + new
        frames.append(seen.frame)
    past = pd.concat([frame for frame in frames if len(frame)])
    champion = past.loc[~past["failed"]].tail(max(fresh, REQUESTS_MIN))
    return Baseline(
        LatencyThresholds.from_requests(bench.policy.canary, champion),
        len(champion),
        cursor,
        float(past["failed"].mean()),
        _units_per_s(past, by_user=bench.policy.assign_by == "user"),
    )


def _units_per_s(past: pd.DataFrame, *, by_user: bool) -> float:
    """Units in a second over the time that the requests span; 0 where that is no time."""
    span_s = float(past["time"].max() - past["time"].min())
    if span_s <= 0:
        return 0.0
    named = past.loc[past["user"] != "", "user"]
    units = named.nunique() + len(past) - len(named) if by_user else len(past)
    return units / span_s


def _from_periods(release: Release, slot: Slot) -> Baseline:
    """The same from the last hour's counts."""
    bench = release.bench
    while True:
        past = past_periods(bench, slot)
        requests = sum(period.requests for period in past)
        if requests >= REQUESTS_MIN:
            break
        _await(release, requests)
    length = bench.endpoint.capabilities.observation_period_s
    span_s = len({period.start for period in past}) * length
    return Baseline(
        past_thresholds(past),
        requests,
        period_start(bench, bench.clock()),
        sum(period.failed for period in past) / requests,
        requests / span_s if span_s > 0 else 0.0,
    )


def _await(release: Release, requests: int) -> None:
    """Let a look's time pass, and say what is waited for."""
    release.check()
    release.progress(
        {
            "reason": f"HOLD: {requests} of {REQUESTS_MIN} champion requests seen, "
            "from which the latency thresholds are taken"
        }
    )
    release.bench.sleep(release.bench.policy.canary.look_every_s)
