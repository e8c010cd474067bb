"""What Cloud Monitoring counted for an endpoint: requests, statuses and latencies by deployed version.

Two metrics, both DELTA, aligned to whole periods: `response_count` by status, and
`prediction_latencies` (the client's whole wait) as a distribution with bins of Google's own.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.endpoint import REFUSALS, Period
from serving.errors import PlatformUnavailable
from serving.vertex.google_apis import GoogleApis
from serving.vertex.state import Deployed

HOST = "monitoring.googleapis.com"
_PREFIX = "aiplatform.googleapis.com/prediction/online"
RESPONSES = f"{_PREFIX}/response_count"
LATENCIES = f"{_PREFIX}/prediction_latencies"
_TO_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_PAGE_SIZE = 1000


@dataclass(slots=True)
class _Counted:
    """One version's numbers of one period."""

    requests: int = 0
    failed: int = 0
    edges_ms: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list)


def read_periods(
    google: GoogleApis,
    endpoint_id: str,
    deployed: Mapping[str, Deployed],
    *,
    since: float,
    until: float,
    period_s: int,
) -> list[Period]:
    """The whole periods within [since, until] (seconds since the epoch), oldest first.

    A period ends at a multiple of `period_s`. Versions that are not in `deployed` any more are left
    out. Raises `PlatformUnavailable` for an answer that is no such metric.
    """
    first = -(-since // period_s) * period_s
    last = until // period_s * period_s
    if last <= first:
        return []
    found: dict[tuple[float, str], _Counted] = defaultdict(_Counted)
    try:
        for series in _series(google, endpoint_id, RESPONSES, first, last, period_s):
            status = int(series["metric"]["labels"]["response_code"])
            for start, value in _points(series, period_s):
                counted = found[start, _deployed_of(series)]
                number = int(value.get("int64Value", 0))
                counted.requests += number
                counted.failed += number if status >= 500 or status in REFUSALS else 0
        for series in _series(google, endpoint_id, LATENCIES, first, last, period_s):
            if series["metric"]["labels"].get("latency_type", "total") == "total":
                for start, value in _points(series, period_s):
                    _add_histogram(found[start, _deployed_of(series)], value, series["unit"])
    except (KeyError, TypeError, ValueError) as error:
        raise PlatformUnavailable(
            f"Cloud Monitoring answered what is no metric of an endpoint ({error!r}). Next: try again"
        ) from error
    return [
        Period(
            deployed[name].slot,
            deployed[name].version,
            start,
            start + period_s,
            counted.requests,
            counted.failed,
            counted.edges_ms,
            tuple(counted.counts) or (0,) * (len(counted.edges_ms) + 1),
        )
        for (start, name), counted in sorted(found.items())
        if name in deployed and counted.requests > 0 and first <= start < last
    ]


def bin_edges(options: Mapping[str, Any]) -> list[float]:
    """Finite bucket bounds of a distribution, rising, in its own unit (BucketOptions of google.api)."""
    if "exponentialBuckets" in options:
        given = options["exponentialBuckets"]
        scale, growth = float(given["scale"]), float(given["growthFactor"])
        return [scale * growth**power for power in range(int(given["numFiniteBuckets"]) + 1)]
    if "linearBuckets" in options:
        given = options["linearBuckets"]
        offset, width = float(given.get("offset", 0)), float(given["width"])
        return [offset + width * step for step in range(int(given["numFiniteBuckets"]) + 1)]
    return [float(bound) for bound in options["explicitBuckets"]["bounds"]]


def _add_histogram(counted: _Counted, value: Mapping[str, Any], unit: str) -> None:
    """Add a distribution. Bins are [lower, upper) there; trailing empty ones are not sent."""
    distribution = value["distributionValue"]
    if not int(distribution.get("count", 0)):
        return
    edges = tuple(edge * _TO_MS[unit] for edge in bin_edges(distribution["bucketOptions"]))
    counts = [int(count) for count in distribution.get("bucketCounts", ())]
    counts += [0] * (len(edges) + 1 - len(counts))
    if counted.edges_ms and counted.edges_ms != edges:
        raise ValueError("two distributions of one version have different bins")
    counted.edges_ms = edges
    counted.counts = [a + b for a, b in zip(counted.counts or [0] * len(counts), counts, strict=True)]


def _series(
    google: GoogleApis, endpoint_id: str, metric: str, first: float, last: float, period_s: int
) -> list[dict[str, Any]]:
    parameters = {
        "filter": f'metric.type="{metric}" AND resource.type="aiplatform.googleapis.com/Endpoint" '
        f'AND resource.labels.endpoint_id="{endpoint_id}"',
        "interval.startTime": _stamp(first),
        "interval.endTime": _stamp(last),
        "aggregation.alignmentPeriod": f"{period_s}s",
        "aggregation.perSeriesAligner": "ALIGN_DELTA",
        "pageSize": _PAGE_SIZE,
    }
    found: list[dict[str, Any]] = []
    while True:
        page = google.get(HOST, f"/v3/projects/{google.project}/timeSeries", parameters)
        found.extend(page.get("timeSeries", ()))
        if not page.get("nextPageToken"):
            return found
        parameters["pageToken"] = page["nextPageToken"]


def _points(series: Mapping[str, Any], period_s: int) -> list[tuple[float, Mapping[str, Any]]]:
    """Start of each period, and its value."""
    return [(_seconds(one["interval"]["endTime"]) - period_s, one["value"]) for one in series["points"]]


def _deployed_of(series: Mapping[str, Any]) -> str:
    return str(series["metric"]["labels"]["deployed_model_id"])


def _stamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


def _seconds(stamp: str) -> float:
    return datetime.datetime.fromisoformat(stamp).timestamp()
