"""Cloud Monitoring's time series of an endpoint, from the requests that it answered."""

from __future__ import annotations

import bisect
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SCALE_MS, GROWTH, BINS = 1.0, 1.15, 80
"""Bins of the latency distribution (exponential), in ms."""


@dataclass
class Answered:
    time: float
    deployed: str
    status: int
    ms: float


def _stamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


def _grouped(
    kept: list[Answered], start: float, period: int, key: Callable[[Answered], Any]
) -> dict[Any, Any]:
    found: dict[Any, dict[float, list[Answered]]] = {}
    for one in kept:
        end = start + ((one.time - start) // period + 1) * period
        found.setdefault(key(one), {}).setdefault(end, []).append(one)
    return found


def _series(metric: str, kind: str, labels: dict[str, str], unit: str, points: list[Any]) -> dict[str, Any]:
    return {
        "metric": {"type": metric, "labels": labels},
        "resource": {"type": "aiplatform.googleapis.com/Endpoint", "labels": {}},
        "metricKind": "DELTA",
        "valueType": kind,
        "unit": unit,
        "points": points,
    }


def _point(end: float, period: int, value: dict[str, Any]) -> dict[str, Any]:
    return {"interval": {"startTime": _stamp(end - period), "endTime": _stamp(end)}, "value": value}


def responses(metric: str, kept: list[Answered], start: float, period: int) -> list[dict[str, Any]]:
    grouped = _grouped(kept, start, period, lambda one: (one.deployed, one.status))
    return [
        _series(
            metric,
            "INT64",
            {"deployed_model_id": deployed, "response_code": str(status)},
            "1",
            [_point(end, period, {"int64Value": str(len(ones))}) for end, ones in sorted(by_end.items())],
        )
        for (deployed, status), by_end in grouped.items()
    ]


def latencies(metric: str, kept: list[Answered], start: float, period: int) -> list[dict[str, Any]]:
    bounds = [SCALE_MS * GROWTH**power for power in range(BINS + 1)]

    def value(ones: list[Answered]) -> dict[str, Any]:
        counts = [0] * (BINS + 2)
        for one in ones:
            counts[bisect.bisect_right(bounds, one.ms)] += 1
        while counts and not counts[-1]:
            counts.pop()
        options = {"numFiniteBuckets": BINS, "growthFactor": GROWTH, "scale": SCALE_MS}
        return {
            "distributionValue": {
                "count": str(len(ones)),
                "bucketOptions": {"exponentialBuckets": options},
                "bucketCounts": [str(count) for count in counts],
            }
        }

    grouped = _grouped(kept, start, period, lambda one: one.deployed)
    return [
        _series(
            metric,
            "DISTRIBUTION",
            {"deployed_model_id": deployed, "latency_type": "total"},
            "ms",
            [_point(end, period, value(ones)) for end, ones in sorted(by_end.items())],
        )
        for deployed, by_end in grouped.items()
    ]
