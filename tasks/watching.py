"""The watch: does the champion keep its service levels, and if not, would going back help?

One look reads what finished since the last one, tests it, and stores where it stands as a
numbered step of the journal: the next look goes on from there, in this process or another, and
no request counts twice. Where a level is broken, recent requests are replayed to the champion and
to the version before it; `evals.control.decide` says what follows. Replays go straight to the
replicas, marked as copies: neither the access log nor the captures take them for live traffic.

Imports neither Prefect nor MLflow.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import Queue

from evals.burn import Bucket, add_minutes, burns
from evals.control import ControlVerdict, Decision, Previous, PreviousState, Step, decide
from evals.periods import GRID_MS, watch_counts
from evals.quality import by_badness
from evals.verdict import Outcome
from evals.watch import QUALITY, Harm, WatchCounts, count_requests
from evals.watch_decisions import Asked, WatchLook
from serving.errors import Fenced, Refused, ServingError, TransientError
from serving.records import EndpointRow, ReleaseState, Stage
from tasks import rolling_back
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.controlling import ask_control, find_previous, keep_warm
from tasks.labels import new_scores
from tasks.previous import WATCH
from tasks.ramp_evidence import arm_period, watermark
from tasks.rolling_back import RollbackReport
from tasks.watch_memory import Memory, begin, move_spool, remember, spent_on, store
from tasks.watch_record import keep_decision

_LOG = logging.getLogger("interlock.watch")
_WHO = "watch"
_ROWS_MAX = 200_000
"""Requests of one look: a watch that was away for long catches up in looks of this size."""
_BLIND_AFTER_S = 120.0
_GAP_S = 300.0
"""A scheduled run begins every minute; one that is still at work may keep the next ones away."""
_NOTICE_S = 1.0
"""How soon an endpoint notices that all others have had their time."""


@dataclass(frozen=True, slots=True)
class WatchReport:
    """What one look saw, decided and did. `step` and `outcome` are plain words, for people and JSON."""

    endpoint: str
    version: str
    outcome: str
    step: str
    reason: str
    requests: int = 0
    next_step: str = ""
    rollback: RollbackReport | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


def watch(benches: Sequence[Bench], *, run_s: float | None = None) -> Iterator[WatchReport]:
    """Look at every endpoint as often as its policy says, until its `watch.run_s` is over.

    `run_s` overrides the policies'. Each endpoint has a thread, and its bench a journal of its own, so that a
    look which starts a cold version keeps nobody else waiting; the others are looked at until it is done.
    An endpoint that cannot be looked at is reported as ERROR and looked at again.
    """
    busy = {bench.name for bench in benches}
    if len(benches) == 1:  # Ctrl-C must end it at once
        yield from _looks(benches[0], busy, run_s)
        return
    reports: Queue[WatchReport | None] = Queue()

    def run(bench: Bench) -> None:
        try:
            for report in _looks(bench, busy, run_s):
                reports.put(report)
        except Exception as error:  # noqa: BLE001 (one endpoint's trouble must not blind the others)
            _LOG.exception("%s: the watch of this endpoint ended", bench.name)
            reports.put(_no_look(bench, Outcome.ERROR, f"{type(error).__name__}: {error}"))
        finally:
            busy.discard(bench.name)
            reports.put(None)

    with ThreadPoolExecutor(max(1, len(benches)), thread_name_prefix="watch") as pool:
        try:
            for bench in benches:
                pool.submit(contextvars.copy_context().run, run, bench)
            for _ in benches:
                yield from iter(reports.get, None)
        finally:
            busy.clear()  # whoever stops listening, or is told to end, must not wait until the time is over


def _looks(bench: Bench, busy: set[str], run_s: float | None) -> Iterator[WatchReport]:
    """One endpoint's looks, until no endpoint is `busy`: with its own time over it leaves that set."""
    _tell_of_gap(bench)
    every_s = bench.policy.watch.look_every_s
    at = bench.clock()
    ends = at + (bench.policy.watch.run_s if run_s is None else run_s)
    while busy:
        yield look(bench)
        at = max(at + every_s, bench.clock())
        if at > ends:
            busy.discard(bench.name)
        while busy and bench.clock() < at:
            bench.sleep(min(_NOTICE_S, at - bench.clock()))


def _tell_of_gap(bench: Bench) -> None:
    """Tell where nobody has looked at the endpoint for long: harm of that time came to nobody's notice."""
    gap_s = _unseen_s(bench)
    if gap_s > _GAP_S + bench.policy.watch.look_every_s:
        alert(
            bench,
            "warning",
            f"the watch did not look for {gap_s:.0f} s; it goes on now",
            numbers={"gap_s": gap_s},
            next_step="look at the flow runs of `watch` in Prefect, and interlock doctor",
            key="watch-gap",
        )


def _unseen_s(bench: Bench) -> float:
    """How long ago the endpoint was last looked at; 0 for never, and where the journal does not answer."""
    try:
        kept = bench.journal.state(bench.name, WATCH)
    except ServingError as error:
        _LOG.info("%s: when it was last looked at is not known: %s", bench.name, error)
        return 0.0
    return bench.clock() - kept.time if kept else 0.0


def look(bench: Bench) -> WatchReport:
    """One look, with all that follows from it. Foreseen trouble is an ERROR in the report."""
    try:
        return _look(bench)
    except Fenced as error:
        return _no_look(bench, Outcome.INCONCLUSIVE, f"somebody else was first: {error}")
    except ServingError as error:
        blind_s = _unseen_s(bench)
        if blind_s > _BLIND_AFTER_S:
            alert(
                bench,
                "critical",
                f"the watch is blind since {blind_s:.0f} s: {error}",
                numbers={"blind_s": blind_s},
                next_step="interlock doctor",
                key="watch-blind",
            )
        return _no_look(bench, Outcome.ERROR, str(error))


def _no_look(bench: Bench, outcome: Outcome, why: str) -> WatchReport:
    return WatchReport(bench.name, "", outcome, Step.GO_ON, why)


def _look(bench: Bench) -> WatchReport:
    row = bench.row()
    if not row.champion:
        return _no_look(bench, Outcome.INCONCLUSIVE, "it never served")
    memory = remember(bench, row)
    if memory is None:
        begin(bench, row)
        return WatchReport(bench.name, row.champion, Outcome.INCONCLUSIVE, Step.GO_ON, "the watch begins")
    before = memory.judge.as_dict()
    counts = _read(bench, row, memory)
    now = bench.clock()
    harms = memory.judge.look(counts, now=now)
    if not harms or not memory.spool:  # while there is harm the requests of its time are kept at hand
        move_spool(bench, memory, now)
    if not harms:
        memory.cells, memory.asked_at, memory.asks = {}, 0.0, 0
    store(bench, memory)  # before anything follows from it: whoever read the same requests stops here
    verdict = memory.judge.verdict(counts, now)
    decision, rollback = Decision(Step.GO_ON, verdict.reason), None
    if harms:
        decision = _decide(bench, row, memory, harms, WatchLook(before, counts, now))
        rollback = _act(bench, row, memory, decision, harms)
        memory.harm_at = now
        store(bench, memory)
    elif counts.requests:
        _check_burn(bench, memory, now)
    return WatchReport(
        bench.name,
        row.champion,
        verdict.outcome,
        decision.step,
        decision.reason,
        counts.requests,
        decision.next_step,
        rollback,
        memory.judge.numbers(),
    )


# -- seeing ------------------------------------------------------------------------------------------


def _read(bench: Bench, row: EndpointRow, memory: Memory) -> WatchCounts:
    budgets = [level.budget_ms for level in memory.judge.levels if level.budget_ms is not None]
    if not bench.endpoint.capabilities.per_request_observations:
        return _bucketed(bench, memory, _read_periods(bench, row, memory, budgets))
    seen = bench.endpoint.observations(
        memory.cursor, settle_s=max(budgets, default=0.0) / 1000, limit=_ROWS_MAX
    )
    stuck = seen.in_flight.get(row.default, 0) if budgets else 0
    counts = count_requests(seen.frame, memory.judge.levels, version=row.champion, stuck=stuck)
    memory.cursor = seen.cursor
    return _bucketed(bench, memory, counts)


def _read_periods(bench: Bench, row: EndpointRow, memory: Memory, budgets: Sequence[float]) -> WatchCounts:
    """The periods that became complete since the last look."""
    since, until = float(memory.cursor), watermark(bench, bench.clock())
    if until <= since:
        return WatchCounts()
    found = bench.endpoint.periods(since, until, edges_ms=tuple(sorted(set(budgets))) or GRID_MS)
    memory.cursor = str(until)
    ours = [arm_period(one, 0.0, candidate=False) for one in found if one.version == row.champion]
    return watch_counts(ours, memory.judge.levels)


def _bucketed(bench: Bench, memory: Memory, counts: WatchCounts) -> WatchCounts:
    """The counts with the labels that came since; the minutes go into the memory of the burn rates."""
    if any(level.name == QUALITY for level in memory.judge.levels):
        scores, memory.labels = new_scores(bench, memory.version, memory.labels)
        counts = replace(counts, quality=by_badness(scores))
    keep_s = max((rule.long_s for rule in bench.policy.watch.burn), default=0.0)
    now = bench.clock()
    memory.buckets = add_minutes(memory.buckets, counts.minutes, now=now, keep_s=keep_s)
    timed = {spent_on(one): one.name for one in memory.judge.levels if one.budget_ms is not None}
    memory.slow = {
        kept: add_minutes(memory.slow.get(kept, ()), counts.slow.get(name, {}), now=now, keep_s=keep_s)
        for kept, name in timed.items()
    }
    return counts


def _check_burn(bench: Bench, memory: Memory, now: float) -> None:
    """Alert on the speed at which a budget is spent, the availability's first; nobody is rolled back for it.

    Whoever was told of harm a moment ago need not be told of what it spent.
    """
    for spending in _spendings(bench, memory):
        found = burns(bench.policy.watch.burn, spending.objective, spending.buckets, now=now)
        if not found:
            continue
        burn, *_ = found
        if now - memory.harm_at > burn.rule.short_s:
            reason = burn.reason(spending.budget, spending.did)
            alert(
                bench,
                burn.rule.severity,
                f"version {memory.version}: {reason}, the objective is {spending.objective:.3%}",
                numbers={"long_rate": burn.long_rate, "short_rate": burn.short_rate, "bad": burn.bad},
                next_step=f"interlock status {bench.name}",
                key=f"burn-{spending.name}-{burn.rule.rate:g}",
            )
        return  # failures are no quick answers: they burn the other budgets too


@dataclass(frozen=True, slots=True)
class _Spending:
    """One budget and what was spent of it; `budget` and `did` are words for `Burn.reason`."""

    name: str
    budget: str
    did: str
    objective: float
    buckets: tuple[Bucket, ...]


def _spendings(bench: Bench, memory: Memory) -> Iterator[_Spending]:
    availability = bench.policy.watch.availability
    if availability is not None:
        yield _Spending("availability", "error budget", "failed", availability, memory.buckets)
    for level in memory.judge.levels:
        if level.budget_ms is not None:
            did = f"waited over {level.budget_ms:g} ms"
            buckets = memory.slow.get(spent_on(level), ())
            yield _Spending(level.name, f"budget of {level.name}", did, 1 - level.limit, buckets)


# -- asking ------------------------------------------------------------------------------------------


def _decide(
    bench: Bench, row: EndpointRow, memory: Memory, harms: tuple[Harm, ...], seen: WatchLook
) -> Decision:
    """What follows from harm: find the previous version, ask it, and let the table decide."""
    watch, now = bench.policy.watch, bench.clock()
    rests = memory.asked_at > 0 and now - memory.asked_at < watch.control.every_s
    if rests:
        return Decision(Step.GO_ON, f"{harms[0].finding.reason}; the control was asked lately")
    if all(harm.level.gauge for harm in harms):
        previous = Previous(
            "", PreviousState.AWAY, "it is measured of live requests only, replays do not show it"
        )
    else:
        row, previous = find_previous(bench, row)
    control: ControlVerdict | None = None
    if previous.state is PreviousState.WARM:
        keep_warm(bench, row)
        control, problem = ask_control(bench, row, memory, harms)
        if problem:
            previous = Previous(previous.version, PreviousState.AWAY, problem)
    decision = decide(bench.name, row.champion, harms, previous, control, may_roll_back=watch.roll_back)
    asked = Asked(previous, memory.cells, memory.asks, control)
    keep_decision(bench, row, seen, asked, harms, decision)
    if decision.step is not Step.ASK:
        memory.asked_at, memory.cells, memory.asks = now, {}, memory.asks + 1
    return decision


# -- acting ------------------------------------------------------------------------------------------


def _act(
    bench: Bench, row: EndpointRow, memory: Memory, decision: Decision, harms: tuple[Harm, ...]
) -> RollbackReport | None:
    numbers = {harm.level.name: harm.finding.champion for harm in harms}
    if decision.step is Step.ALERT:
        _pause_ramp(bench, row)
        key = f"harm-{row.champion}-{decision.about.lower()}"
        alert(bench, "critical", decision.reason, numbers=numbers, next_step=decision.next_step, key=key)
    if decision.step is not Step.ROLL_BACK:
        return None
    try:
        report = rolling_back.roll_back(bench, who=_WHO, reason=decision.reason, serving=row.champion)
    except (Refused, TransientError) as error:
        memory.asked_at = 0.0  # it would have helped: the next look tries again
        reason = f"{decision.reason}. But the rollback did not happen: {error}"
        alert(
            bench,
            "critical",
            reason,
            numbers=numbers,
            next_step=f"interlock status {bench.name}",
            key=f"rollback-stuck-{row.champion}",
        )
        return None
    # that it happened is told with the change itself (tasks/news.py), in the policy's words
    return report


def _pause_ramp(bench: Bench, row: EndpointRow) -> None:
    """A ramp does not go on while its control is broken: that proves nothing about the candidate."""
    release = bench.journal.open_release(bench.name)
    if release is None or row.release_id != release.id or release.request:
        return
    if release.state is ReleaseState.RUNNING and release.stage is Stage.CANARY:
        bench.journal.ask(release.id, "pause")
