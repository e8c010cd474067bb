"""The engine's gauges, from vLLM's own `/metrics`: how busy a replica is inside."""

from __future__ import annotations

import re
from dataclasses import dataclass

from serving.direct import DirectClient

_LINE = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """Requests that run, requests that wait for the engine, and the used fraction of the KV cache."""

    running: int
    waiting: int
    kv_cache: float


def parse_engine(text: str) -> EngineGauges | None:
    """From Prometheus' text; None where the engine's metrics are not in it."""
    sums: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    if "num_requests_running" not in sums:
        return None
    return EngineGauges(
        running=int(sums["num_requests_running"]),
        waiting=int(sums.get("num_requests_waiting", 0)),
        kv_cache=sums.get("kv_cache_usage_perc", 0.0),
    )


def read_engine(direct: DirectClient, port: int) -> EngineGauges | None:
    """One replica's gauges now; None where it does not tell."""
    reply = direct.get(port, "/metrics", timeout_s=5)
    return parse_engine(reply.body.decode(errors="replace")) if reply.status == 200 else None
