"""What a watch remembers from look to look: a numbered step in the journal.

Whoever stores step n + 1 has read step n, so two watches of one endpoint never count the same
requests twice: the second to store is fenced, and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.burn import Bucket
from evals.control import Cells
from evals.watch import Level, WatchJudge
from serving.errors import ServingError
from serving.records import EndpointRow
from tasks.bench import Bench
from tasks.labels import newest_label
from tasks.previous import WATCH
from tasks.ramp_evidence import period_start

_LOG = logging.getLogger("interlock.watch")
_SPOOL_AGE_S = 15.0


@dataclass(slots=True)
class Memory:
    """Everything that one look hands to the next; plain values in the journal.

    `spool` is a cursor some seconds in the past, from which recent requests are taken; `newer`
    replaces it when it has become old enough itself. `cells` are the pairs of the question that is
    being asked of the control, `asks` how many were asked since the harm began, `asked_at` when the
    last one was answered. `harm_at` is when harm was last seen, on this version or the one before.
    `labels` is the number of the newest label that was counted. `buckets` are for the burn rate of the
    availability, `slow` for those of the latency budgets, by `spent_on`.
    """

    number: int
    version: str
    cursor: str
    judge: WatchJudge
    buckets: tuple[Bucket, ...] = ()
    spool: str = ""
    newer: str = ""
    newer_at: float = 0.0
    asked_at: float = 0.0
    asks: int = 0
    cells: dict[str, Cells] = field(default_factory=dict)
    harm_at: float = 0.0
    labels: int = 0
    slow: dict[str, tuple[Bucket, ...]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return {
            "version": self.version,
            "cursor": self.cursor,
            "levels": self.judge.as_dict(),
            "buckets": self.buckets,
            "spool": self.spool,
            "newer": self.newer,
            "newer_at": self.newer_at,
            "asked_at": self.asked_at,
            "asks": self.asks,
            "cells": {name: cells.as_dict() for name, cells in self.cells.items()},
            "harm_at": self.harm_at,
            "labels": self.labels,
            "slow": self.slow,
        }


def spent_on(level: Level) -> str:
    """What a latency level's buckets are kept under: of another budget they say nothing."""
    return f"{level.name} {level.budget_ms:g}"


def remember(bench: Bench, row: EndpointRow) -> Memory | None:
    """Where the last look stood. A new champion begins with clean tests; the endpoint's budget goes on."""
    kept = bench.journal.state(bench.name, WATCH)
    if kept is None:
        return None
    value = kept.value
    buckets = _buckets(value["buckets"])
    slow = {name: _buckets(of) for name, of in value.get("slow", {}).items()}
    if value["version"] != row.champion:
        judge = WatchJudge(bench.policy)
        return Memory(
            kept.number,
            row.champion,
            value["cursor"],
            judge,
            buckets,
            harm_at=float(value["harm_at"]),
            labels=int(value.get("labels", 0)),
            slow=slow,
        )
    return Memory(
        kept.number,
        row.champion,
        value["cursor"],
        WatchJudge(bench.policy, value["levels"]),
        buckets,
        value["spool"],
        value["newer"],
        float(value["newer_at"]),
        float(value["asked_at"]),
        int(value["asks"]),
        {name: Cells(**cells) for name, cells in value["cells"].items()},
        float(value["harm_at"]),
        int(value.get("labels", 0)),
        slow,
    )


def _buckets(kept: Sequence[Sequence[float]]) -> tuple[Bucket, ...]:
    return tuple((float(b[0]), int(b[1]), int(b[2]), int(b[3])) for b in kept)


def begin(bench: Bench, row: EndpointRow) -> None:
    """The first look of all only says from where to read."""
    if bench.endpoint.capabilities.per_request_observations:
        cursor = bench.endpoint.observations(None).cursor
    else:
        cursor = period_start(bench, bench.clock())
    memory = Memory(0, row.champion, cursor, WatchJudge(bench.policy), labels=newest_label(bench))
    move_spool(bench, memory, bench.clock())
    store(bench, memory)


def store(bench: Bench, memory: Memory) -> None:
    """The next numbered step. Raises `Fenced` where another run has stored it."""
    stored = bench.journal.put_state(
        bench.name, WATCH, memory.as_dict(), after=memory.number, now=bench.clock()
    )
    memory.number = stored.number


def move_spool(bench: Bench, memory: Memory, now: float) -> None:
    """Keep a cursor that lies some seconds back, so that recent requests are at hand when needed."""
    if memory.spool and now - memory.newer_at < _SPOOL_AGE_S:
        return
    try:
        _, cursor = bench.endpoint.exchanges(None, limit=1)
    except ServingError as error:
        _LOG.info("%s: no requests to replay: %s", bench.name, error)
        cursor = ""
    memory.spool, memory.newer, memory.newer_at = memory.newer or cursor, cursor, now
