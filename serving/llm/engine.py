"""The engine's gauges, from vLLM's own `/metrics`: how busy a replica is inside."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from serving.direct import DirectClient

_LINE = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|(?:kv|gpu)_cache_usage_perc)(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)
_GAUGES = 3


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """Requests that run, requests that wait for the engine, and the used fraction of the KV cache."""

    running: int
    waiting: int
    kv_cache: float


def parse_engine(text: str) -> EngineGauges | None:
    """From Prometheus' text; None where one of the gauges is not in it, or no number.

    A server with several engines has a line for each: requests add up, of the caches the fullest counts.
    """
    found: dict[str, list[float]] = {}
    for name, value in _LINE.findall(text):
        gauge = "kv_cache_usage_perc" if name.endswith("_cache_usage_perc") else name  # gpu_ before vLLM 0.10
        try:
            found.setdefault(gauge, []).append(float(value))
        except ValueError:
            return None
    if len(found) < _GAUGES or not all(math.isfinite(value) for values in found.values() for value in values):
        return None
    return EngineGauges(
        running=int(sum(found["num_requests_running"])),
        waiting=int(sum(found["num_requests_waiting"])),
        kv_cache=max(found["kv_cache_usage_perc"]),
    )


def read_engine(direct: DirectClient, port: int) -> EngineGauges | None:
    """One replica's gauges now; None where it does not tell."""
    reply = direct.get(port, "/metrics", timeout_s=5)
    return parse_engine(reply.body.decode(errors="replace")) if reply.status == 200 else None
