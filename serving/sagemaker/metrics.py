"""CloudWatch's counts of an endpoint's variants as `Period`s.

SageMaker publishes, by variant and period, how many invocations there were, how many failed, and each one's
latency in microseconds. The distribution is asked for as percentile ranks at our edges
(`PR(:2500)` is the percentage of values up to 2500), so that its bins are the ones we want.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from serving.endpoint import Period, Slot
from serving.sagemaker.clients import Clients, translated
from serving.sagemaker.naming import variant_name

_NAMESPACE = "AWS/SageMaker"
_QUERIES_MAX = 500
_ERRORS = ("Invocation4XXErrors", "Invocation5XXErrors")


def read_periods(
    clients: Clients,
    name: str,
    variants: Sequence[tuple[Slot, str]],
    *,
    since: float,
    until: float,
    period_s: int,
    edges_ms: tuple[float, ...],
) -> list[Period]:
    """Whole periods within [since, until] of these variants (slot and version), oldest first.

    Times in seconds since the epoch, both on a period's boundary.
    """
    if until <= since or not variants:
        return []
    queries = [
        _query(index, name, variant_name(slot, version), metric, stat, period_s)
        for index, (slot, version) in enumerate(variants)
        for metric, stat in _stats(edges_ms)
    ]
    found: dict[str, dict[float, float]] = {}
    for part in _parts(queries):
        for id_, values in _ask(clients, name, part, since, until):
            found.setdefault(id_, {}).update(values)
    periods = [
        period
        for index, (slot, version) in enumerate(variants)
        for period in _periods(found, index, slot, version, since, until, period_s, edges_ms)
    ]
    return sorted(periods, key=lambda period: (period.start, period.slot))


def _stats(edges_ms: tuple[float, ...]) -> list[tuple[str, str]]:
    counts = [
        ("Invocations", "Sum"),
        *((metric, "Sum") for metric in _ERRORS),
        ("ModelLatency", "SampleCount"),
    ]
    return [*counts, *(("ModelLatency", f"PR(:{_us(edge)})") for edge in edges_ms)]


def _us(edge_ms: float) -> int:
    return round(edge_ms * 1000)


def _id(index: int, metric: str, stat: str) -> str:
    """Ids begin with a small letter, then letters, digits and underscores."""
    return f"v{index}_{metric}_{stat.replace('PR(:', 'rank').rstrip(')')}"


def _query(index: int, name: str, variant: str, metric: str, stat: str, period_s: int) -> dict[str, Any]:
    return {
        "Id": _id(index, metric, stat),
        "ReturnData": True,
        "MetricStat": {
            "Metric": {
                "Namespace": _NAMESPACE,
                "MetricName": metric,
                "Dimensions": [
                    {"Name": "EndpointName", "Value": name},
                    {"Name": "VariantName", "Value": variant},
                ],
            },
            "Period": period_s,
            "Stat": stat,
        },
    }


def _parts(queries: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(queries), _QUERIES_MAX):
        yield queries[start : start + _QUERIES_MAX]


def _ask(
    clients: Clients, name: str, queries: list[dict[str, Any]], since: float, until: float
) -> Iterator[tuple[str, dict[float, float]]]:
    """Each query's values by the start of their period."""
    asked: dict[str, Any] = {
        "MetricDataQueries": queries,
        "StartTime": datetime.fromtimestamp(since, UTC),
        "EndTime": datetime.fromtimestamp(until, UTC),
        "ScanBy": "TimestampAscending",
    }
    while True:
        with translated(f"{name}: read metrics"):
            answer: Any = clients.cloudwatch.get_metric_data(**asked)
        for result in answer["MetricDataResults"]:
            times = [float(time.timestamp()) for time in result["Timestamps"]]
            yield str(result["Id"]), dict(zip(times, map(float, result["Values"]), strict=True))
        if not answer.get("NextToken"):
            return
        asked["NextToken"] = answer["NextToken"]


def _periods(
    found: Mapping[str, Mapping[float, float]],
    index: int,
    slot: Slot,
    version: str,
    since: float,
    until: float,
    period_s: int,
    edges_ms: tuple[float, ...],
) -> Iterator[Period]:
    def value(metric: str, stat: str, start: float) -> float:
        return found.get(_id(index, metric, stat), {}).get(start, 0.0)

    for start in sorted(found.get(_id(index, "Invocations", "Sum"), {})):
        requests = round(value("Invocations", "Sum", start))
        if requests <= 0 or start < since or start + period_s > until:
            continue
        failed = round(sum(value(metric, "Sum", start) for metric in _ERRORS))
        measured = round(value("ModelLatency", "SampleCount", start))
        ranks = [value("ModelLatency", f"PR(:{_us(edge)})", start) for edge in edges_ms]
        below = [min(round(rank / 100 * measured), measured) for rank in ranks]
        counts = [high - low for low, high in zip([0, *below], [*below, measured], strict=True)]
        yield Period(
            slot, version, start, start + period_s, requests, min(failed, requests), edges_ms, tuple(counts)
        )
