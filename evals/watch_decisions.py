"""A watch's decision with all that it was made from: state, counts, pairs. Made again, it is the same.

A watch has no end, so not every look is kept, but those that found harm and decided on it. The state
before such a look (the wealth of each bet) stands for all looks before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from configs.policy import Canary, Latency, LatencyBudget, Policy
from configs.watch import Watch
from evals.control import Cells, ControlVerdict, Decision, Previous, PreviousState, decide, judge_control
from evals.decisions import digest
from evals.watch import Harm, WatchCounts, WatchJudge


@dataclass(frozen=True, slots=True)
class WatchLook:
    """What one look read: the judge's state before it, the counts, and when (seconds since the epoch)."""

    before: Mapping[str, Any]
    counts: WatchCounts
    now: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What the previous version was asked: pairs by level, which question it was, and the answer."""

    previous: Previous
    cells: Mapping[str, Cells]
    asks: int
    control: ControlVerdict | None


def record_of(
    policy: Policy, champion: str, look: WatchLook, asked: Asked, harms: Sequence[Harm], decision: Decision
) -> dict[str, Any]:
    """The decision as plain values; a few kilobytes, whatever the traffic."""
    counts = look.counts
    return {
        "endpoint": policy.endpoint,
        "champion": champion,
        "watch": policy.watch.model_dump(mode="json"),
        "budget_ms": policy.canary.latency.budget_ms.model_dump(mode="json"),
        "before": dict(look.before),
        "now": look.now,
        "counts": {
            "requests": counts.requests,
            "bad": dict(counts.bad),
            "stuck": counts.stuck,
            "quality": list(counts.quality),
            "known": dict(counts.known),
        },
        "previous": {**asdict(asked.previous), "state": asked.previous.state.value},
        "cells": {name: cells.as_dict() for name, cells in asked.cells.items()},
        "asks": asked.asks,
        "is_final": None if asked.control is None else asked.control.is_final,
        "decided": _told(harms, decision),
    }


def decide_again(stats: Mapping[str, Any]) -> dict[str, Any]:
    """What `record_of` stored as decided, from the rest of the record."""
    watch = Watch.model_validate(stats["watch"], extra="ignore")
    latency = Latency.model_construct(budget_ms=LatencyBudget.model_validate(stats["budget_ms"]))
    policy = Policy.model_construct(watch=watch, canary=Canary.model_construct(latency=latency))
    judge = WatchJudge(policy, stats["before"])
    kept = stats["counts"]
    counts = WatchCounts(
        kept["requests"],
        kept["bad"],
        kept["stuck"],
        tuple(kept["quality"]),
        known=kept.get("known", {}),
    )
    harms = judge.look(counts, now=float(stats["now"]))
    control = None
    if stats["is_final"] is not None:
        alpha = alpha_of(watch, int(stats["asks"]))
        cells = {name: Cells(**of) for name, of in stats["cells"].items()}
        told = judge_control(watch.control, alpha, harms, cells, judge.levels)
        control = replace(told, is_final=stats["is_final"])  # whether more requests were at hand
    previous = Previous(
        stats["previous"]["version"], PreviousState(stats["previous"]["state"]), stats["previous"]["note"]
    )
    decision = decide(
        stats["endpoint"], stats["champion"], harms, previous, control, may_roll_back=watch.roll_back
    )
    return _told(harms, decision)


def alpha_of(watch: Watch, asks: int) -> float:
    """Question k since the harm began has alpha/(k(k + 1)): all together stay within alpha."""
    return watch.alpha / ((asks + 1) * (asks + 2))


def _told(harms: Sequence[Harm], decision: Decision) -> dict[str, Any]:
    made = {"harms": [asdict(harm.finding) for harm in harms], "decision": asdict(decision)}
    return {"step": decision.step.value, "reason": decision.reason, "digest": digest(made)}
