"""What language models' replicas tell: their engines' gauges, which gate the ramp; their guards' counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from configs.serving_runtime import EngineLimits
from serving.endpoint import Slot
from serving.local import LocalEndpoint
from tasks.bench import Bench

if TYPE_CHECKING:
    from serving.llm.engine import EngineGauges
    from tasks.release import Release


def read_engines(bench: Bench) -> dict[Slot, dict[str, EngineGauges | None]]:
    """By slot and replica, None of one that does not tell; nothing where no language model is served here."""
    endpoint = bench.endpoint
    if not bench.policy.serving.is_llm or not isinstance(endpoint, LocalEndpoint):
        return {}
    return endpoint.engines()


def read_guards(bench: Bench) -> dict[Slot, dict[str, int]]:
    """What the guards did, by slot and `stage/check/done`; nothing where none stands."""
    endpoint = bench.endpoint
    return endpoint.guard_counts() if isinstance(endpoint, LocalEndpoint) else {}


def guard_numbers(bench: Bench, candidate: Slot) -> dict[str, float]:
    """The same as numbers of a look: `guards/candidate/output/personal/block`."""
    return {
        f"guards/{'candidate' if slot is candidate else 'champion'}/{name}": float(count)
        for slot, counts in read_guards(bench).items()
        for name, count in counts.items()
    }


def engine_objection(release: Release, slot: Slot, *, step: int) -> str:
    """Why the candidate's engines should get no more traffic now, or "". Notes their gauges in the trail."""
    bench = release.bench
    gauges = read_engines(bench).get(slot, {})
    told = [one for one in gauges.values() if one is not None]
    if told:
        numbers = {
            "engine/running": float(sum(one.running for one in told)),
            "engine/waiting": float(max(one.waiting for one in told)),
            "engine/kv_cache": max(one.kv_cache for one in told),
        }
        release.trail.numbers(numbers, now=bench.clock(), step=step)
    return objection(gauges, bench.policy.serving.engine)


def objection(gauges: Mapping[str, EngineGauges | None], limits: EngineLimits) -> str:
    """The first replica that is above a limit, or does not tell, with the next step; "" where none is.

    An engine that has too much to do answers late or not at all, so silence is an objection too.
    """
    if not limits.is_set:
        return ""
    if not gauges:
        return "no replica tells its engine's gauges, and serving.engine limits them. Next: interlock logs"
    for name, one in sorted(gauges.items()):
        if one is None:
            return (
                f"{name} does not tell its engine's gauges, and serving.engine limits them. "
                f"Next: wait, or interlock logs {name}"
            )
        if limits.waiting is not None and one.waiting > limits.waiting:
            most = limits.waiting
            return f"{name}: {one.waiting} requests wait in the engine, the policy allows {most}. {_NEXT}"
        if limits.kv_cache is not None and one.kv_cache > limits.kv_cache:
            used = f"{one.kv_cache:.0%} of the KV cache is in use"
            return f"{name}: {used}, the policy allows {limits.kv_cache:.0%}. {_NEXT}"
    return ""


_NEXT = "Next: wait, raise replicas.count, or the limit in serving.engine"
