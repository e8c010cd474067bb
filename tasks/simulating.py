"""What a policy does to good and bad versions, on the endpoint's own traffic, before anyone trusts it.

Traffic comes from the gateway's access log (of a managed platform: from its counts), or from what the
operator says. Releases are played by `evals.simulation`, with the judge and the ramp of a real one, in a
process a core. Every release has a seed of its own: one that was played is the same again, however many
others were.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.loading import load_endpoint, load_policy
from configs.policy import Canary, Policy
from configs.settings import Settings
from evals.periods import ArmPeriod
from evals.ramp import StepPlan, plan, plan_words
from evals.simulation import Change, Played, Traffic, horizon_s, play
from evals.verdict import Outcome
from serving.errors import Refused
from serving.gateway.access_log import AccessLog
from serving.gateway.places import access_log_path
from tasks.bench import Bench
from tasks.ramp_evidence import past_periods

_LOG_BYTES = 64 << 20
_REQUESTS_MIN = 1000
_GOOD_TIMES = 4
"""The good version is played more often: a false rollback is rare."""


@dataclass(frozen=True, slots=True)
class Given:
    """Traffic in the operator's words; ms, requests a second, distinct users an hour (0: none are named)."""

    requests_per_s: float
    error_rate: float = 0.01
    p50_ms: float = 50.0
    p99_ms: float = 250.0
    users_per_h: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """How releases of one kind of candidate ended. Shares are fractions, the others medians and 90%.

    `exposed` are requests that the candidate had answered when it was rolled back; `seconds` run until the
    rollback, `promoted_s` until the promotion; None where there was none.
    """

    name: str
    plays: int
    promoted: float
    rolled_back: float
    rolled_back_at_most: float
    undecided: float
    seconds: tuple[float, float] | None
    exposed: tuple[float, float] | None
    promoted_s: tuple[float, float] | None

    @classmethod
    def of(cls, name: str, plays: Sequence[Played]) -> Row:
        """From releases; `rolled_back_at_most` is the one-sided 95% bound (Clopper-Pearson)."""
        from scipy.stats import beta

        count = len(plays)
        back = [one for one in plays if one.outcome is Outcome.FAIL]
        good = [one for one in plays if one.outcome is Outcome.PASS]
        n, k = max(count, 1), len(back)
        return cls(
            name,
            count,
            len(good) / n,
            k / n,
            1.0 if k == count else float(beta.ppf(0.95, k + 1, count - k)),
            1 - (len(good) + k) / n,
            _spread([one.seconds for one in back]),
            _spread([float(one.exposed) for one in back]),
            _spread([one.seconds for one in good]),
        )


def _spread(values: Sequence[float]) -> tuple[float, float] | None:
    """Median and 90% quantile."""
    if not values:
        return None
    return float(np.quantile(values, 0.5)), float(np.quantile(values, 0.9))


@dataclass(frozen=True, slots=True)
class Simulated:
    """All that was played, with what it was played on. `plays` has one entry a row."""

    endpoint: str
    source: str
    traffic: dict[str, float]
    seed: int
    horizon_s: float
    false_rollback: float
    rows: tuple[Row, ...]
    plan: tuple[str, ...]
    notes: tuple[str, ...]
    plays: tuple[tuple[Played, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the single releases are left out."""
        return {name: value for name, value in asdict(self).items() if name != "plays"}


def policy_of(settings: Settings, name: str) -> Policy:
    """A policy from its file, or by its endpoint's name."""
    path = Path(name)
    return load_policy(path) if path.is_file() or path.suffix else load_endpoint(settings, name)


def changes(errors: Sequence[float], tails: Sequence[float], slower: Sequence[float]) -> list[Change]:
    """The candidates: a good one, then each harm. Errors in percentage points, the others are factors."""
    return [
        Change("good"),
        *(Change(f"errors +{points:g} points", more_errors=points / 100) for points in errors),
        *(Change(f"tail above p95 x{factor:g}", tail=factor) for factor in tails),
        *(Change(f"all times x{factor:g}", slower=factor) for factor in slower),
    ]


def traffic_of(policy: Policy, settings: Settings, given: Given | None, seed: int) -> tuple[Traffic, str]:
    """The traffic to play on, and where it is from. Raises `Refused` where none is known."""
    if given is not None:
        rng = np.random.default_rng(seed)
        return Traffic.made_up(rng, **asdict(given)), "as given"
    bench = Bench(policy, settings)
    if policy.platform != "local":
        return _from_counts(bench)
    frame = AccessLog(access_log_path(settings), policy.endpoint).recent(_LOG_BYTES)
    champion = bench.row().champion
    ours = frame.loc[frame["version"] == champion] if champion else frame
    span_s = float(frame["time"].max() - frame["time"].min()) if len(frame) else 0.0
    if len(ours) < _REQUESTS_MIN or span_s <= 0:
        raise Refused(
            f"{policy.endpoint}: its access log has {len(ours)} requests of the champion, {_REQUESTS_MIN} "
            "are needed. Next: say what its traffic is: --rate R [--error-rate E --p50 MS --p99 MS "
            "--users N]"
        )
    rate = len(frame) / span_s
    made = Traffic.from_requests(ours, requests_per_s=rate, span_s=span_s)
    return made, f"{len(ours):,} requests of the champion in the access log, over {span_s / 3600:.2g} h"


def _from_counts(bench: Bench) -> tuple[Traffic, str]:
    """From the platform's counts of the last hour; times are spread evenly within their bins."""
    row = bench.row()
    past = past_periods(bench, row.default.sibling) if row.champion else []
    requests = sum(one.requests for one in past)
    if requests < _REQUESTS_MIN:
        raise Refused(
            f"{bench.name}: the platform counted {requests} requests of the champion in the last hour. "
            "Next: say what its traffic is: --rate R [--error-rate E --p50 MS --p99 MS]"
        )
    rng = np.random.default_rng(0)
    service = _times(past, rng)
    failed = rng.random(service.size) < sum(one.failed for one in past) / requests
    span_s = len({one.start for one in past}) * bench.endpoint.capabilities.observation_period_s
    user = np.full(service.size, -1, np.int64)
    made = Traffic(requests / span_s, failed, service, service.copy(), user, np.zeros(0))
    return made, f"{requests:,} requests that the platform counted in the last hour"


def _times(past: Sequence[ArmPeriod], rng: np.random.Generator) -> NDArray[np.float64]:
    edges = np.asarray(past[0].edges_ms, np.float64)
    counts = np.sum([one.counts for one in past], axis=0)
    low, high = np.r_[0.0, edges], np.r_[edges, 2 * edges[-1]]
    bins = rng.choice(counts.size, 20_000, p=counts / counts.sum())
    return low[bins] + rng.random(bins.size) * (high - low)[bins]


def simulate(
    policy: Policy,
    traffic: Traffic,
    source: str,
    candidates: Sequence[Change],
    *,
    plays: int,
    seed: int,
    until_s: float | None = None,
    limit_s: float = 120.0,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Simulated:
    """Play `plays` releases of every candidate (more of the good one), as many as there is time for.

    Releases are begun in turn over the candidates; after `limit_s` (wall time) no more are. `tell` is told of
    the number that is done, and of all.
    """
    canary, by_user = policy.canary, policy.assign_by == "user"
    until = until_s or horizon_s(canary)
    wanted = [
        (kind, index)
        for index in range(plays * _GOOD_TIMES)
        for kind, change in enumerate(candidates)
        if index < plays or change == Change("good")
    ]
    done: dict[tuple[int, int], Played] = {}
    for at, played in _played(canary, traffic, candidates, wanted, by_user, seed, until, limit_s):
        done[at] = played
        tell(len(done), len(wanted))
    of_kind = tuple(
        tuple(played for (kind, _), played in sorted(done.items()) if kind == which)
        for which in range(len(candidates))
    )
    return Simulated(
        policy.endpoint,
        source,
        {
            "requests_per_s": traffic.requests_per_s,
            "error_rate": traffic.error_rate,
            "p50_ms": traffic.quantile_ms(0.5),
            "p95_ms": traffic.quantile_ms(0.95),
            "p99_ms": traffic.quantile_ms(0.99),
            "users": float(traffic.user_rate.size),
        },
        seed,
        until,
        canary.false_rollback,
        tuple(Row.of(change.name, played) for change, played in zip(candidates, of_kind, strict=True)),
        tuple(plan_words(step) for step in _plan(canary, traffic, by_user=by_user)),
        _notes(policy, traffic, len(done), len(wanted)),
        of_kind,
    )


def _played(
    canary: Canary,
    traffic: Traffic,
    candidates: Sequence[Change],
    wanted: Sequence[tuple[int, int]],
    by_user: bool,
    seed: int,
    until_s: float,
    limit_s: float,
) -> Iterator[tuple[tuple[int, int], Played]]:
    """Pairs of (kind, number) and its release, as they are done; a few are under way at a time."""
    workers = os.cpu_count() or 1
    ends = time.monotonic() + limit_s
    queue = iter(wanted)
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(canary, traffic)) as pool:
        running: dict[Future[Played], tuple[int, int]] = {}
        while True:
            while len(running) < 2 * workers and time.monotonic() < ends:
                at = next(queue, None)
                if at is None:
                    break
                kind, number = at
                made = pool.submit(_play, candidates[kind], by_user, (seed, kind, number), until_s)
                running[made] = at
            if not running:
                return
            finished, _ = wait_for(running, return_when="FIRST_COMPLETED")
            for future in finished:
                yield running.pop(future), future.result()


_WORLD: list[Any] = []


def _begin(canary: Canary, traffic: Traffic) -> None:
    """Once a process: what every release there is played on."""
    _WORLD[:] = [canary, traffic]


def _play(change: Change, by_user: bool, seed: tuple[int, ...], until_s: float) -> Played:
    canary, traffic = _WORLD
    return play(canary, traffic, change, by_user=by_user, seed=seed, until_s=until_s)


def _plan(canary: Canary, traffic: Traffic, *, by_user: bool) -> tuple[StepPlan, ...]:
    """By users the pace is that of new ones in the first bake."""
    rate = traffic.requests_per_s
    if by_user and traffic.user_rate.size:
        seconds = max(canary.bake_s, 60.0)
        rate = float(-np.expm1(-traffic.user_rate * seconds).sum()) / seconds
    return plan(canary, error_rate=max(traffic.error_rate, 1e-4), units_per_s=max(rate, 1e-9))


def _notes(policy: Policy, traffic: Traffic, done: int, wanted: int) -> tuple[str, ...]:
    notes = list(policy.warnings)
    if policy.canary.measures or policy.canary.quality is not None:
        notes.append("measures and labels are not simulated: errors and times alone decide here")
    if policy.assign_by == "user" and not traffic.user_rate.size:
        notes.append("assign_by is user, but no request names one: each request is a unit (--users)")
    if done < wanted:
        notes.append(f"{done} of {wanted} releases were played in the time that there was (--minutes)")
    notes.append("looks grow rarer than a release's (every twelfth of the time): times are upper bounds")
    return tuple(notes)
