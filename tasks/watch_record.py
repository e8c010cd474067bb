"""Keeps the watch's decisions with the release that brought the version: counts, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from evals.control import Decision, Step
from evals.decisions import Difference, Recorded, canonical
from evals.watch import Harm
from evals.watch_decisions import Asked, WatchLook, decide_again, record_of
from serving.records import EndpointRow, LookRow
from tasks.bench import Bench

WATCH_STAGE = "watch"
_KEPT_MAX = 200
"""Decisions kept of one version: it is broken for a day before they end."""


def keep_decision(
    bench: Bench, row: EndpointRow, look: WatchLook, asked: Asked, harms: Sequence[Harm], decision: Decision
) -> None:
    """Store a decision that ends a question. A version that no release brought leaves none."""
    if decision.step not in (Step.ROLL_BACK, Step.ALERT):
        return
    brought = next(iter(bench.journal.releases(bench.name, version=row.champion)), None)
    if brought is None:
        return
    kept = bench.journal.looks(brought.id, WATCH_STAGE)
    if len(kept) >= _KEPT_MAX:
        return
    stats = record_of(bench.policy, row.champion, look, asked, harms, decision)
    number = kept[-1].number + 1 if kept else 1
    bench.journal.add_look(LookRow(brought.id, WATCH_STAGE, number, look.now, "", str(look.now), stats))


def replay_watch(looks: Sequence[Recorded]) -> Difference | None:
    """The first decision that does not come out as it was stored."""
    for look in looks:
        stored, made = look.stats["decided"], decide_again(look.stats)
        if canonical(stored) != canonical(made):
            return Difference(
                look.number,
                look.time,
                f"{stored['step']}: {stored['reason']}",
                f"{made['step']}: {made['reason']}",
            )
    return None
