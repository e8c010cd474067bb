"""CloudWatch's counts and alarms, Application Auto Scaling's targets, and a small S3."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from tests.doubles.aws.wire import Fault, invalid

_SCALING_ARN = "arn:aws:application-autoscaling:eu-central-1:123456789012"
_RANK = re.compile(r"PR\(:(\d+(?:\.\d+)?)\)")


@dataclass
class Invocations:
    """One variant's requests of one second."""

    counts: dict[str, int] = field(default_factory=dict)
    latency_us: list[float] = field(default_factory=list)


class CloudWatch:
    """Sums, sample counts and percentile ranks over whole periods that are old enough."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.alarms: dict[str, dict[str, Any]] = {}
        self._seconds: dict[tuple[str, str], dict[int, Invocations]] = {}

    def note(self, endpoint: str, variant: str, status: int, latency_ms: float) -> None:
        """One invocation of a variant that its container answered, or did not."""
        second = self._seconds.setdefault((endpoint, variant), {}).setdefault(
            int(self.cloud.clock()), Invocations()
        )
        bad = {
            "Invocation4XXErrors": 400 <= status < 500,
            "Invocation5XXErrors": status >= 500 or status == 0,
        }
        for name, one in {"Invocations": True, **bad}.items():
            second.counts[name] = second.counts.get(name, 0) + one
        bisect.insort(second.latency_us, latency_ms * 1000)

    def get_metric_data(self, asked: dict[str, Any]) -> dict[str, Any]:
        if len(asked["MetricDataQueries"]) > 500:
            raise invalid("The collection MetricDataQueries must not have a size greater than 500.")
        ids = [query["Id"] for query in asked["MetricDataQueries"]]
        if len(set(ids)) < len(ids) or any(not re.fullmatch(r"[a-z][a-zA-Z0-9_]*", id_) for id_ in ids):
            raise invalid("Ids must be unique and begin with a small letter.")
        since, until = (float(asked[name]) for name in ("StartTime", "EndTime"))
        return {
            "MetricDataResults": [self._result(query, since, until) for query in asked["MetricDataQueries"]]
        }

    def put_metric_alarm(self, asked: dict[str, Any]) -> None:
        self.alarms[asked["AlarmName"]] = asked

    def delete_alarms(self, asked: dict[str, Any]) -> None:
        for name in asked["AlarmNames"]:
            self.alarms.pop(name, None)

    def _result(self, query: dict[str, Any], since: float, until: float) -> dict[str, Any]:
        stat, metric = query["MetricStat"], query["MetricStat"]["Metric"]
        if metric["Namespace"] != "AWS/SageMaker":
            raise invalid(f"there is nothing in {metric['Namespace']}")
        where = {one["Name"]: one["Value"] for one in metric["Dimensions"]}
        period = stat["Period"]
        if period not in (1, 5, 10, 20, 30) and period % 60:
            raise invalid(f"a period of {period} s does not exist")
        self._check_frequency(where["EndpointName"], period)
        seconds = self._seconds.get((where["EndpointName"], where["VariantName"]), {})
        parts: dict[int, list[Invocations]] = {}
        for second, one in seconds.items():
            start = second // period * period
            # a period whose data are delayed is not there yet
            if since <= start < until and start + period + self.cloud.metrics_delay_s <= self.cloud.clock():
                parts.setdefault(start, []).append(one)
        values = {start: _value(parts[start], metric["MetricName"], stat["Stat"]) for start in sorted(parts)}
        known = {start: value for start, value in values.items() if value is not None}
        times = [float(start) for start in known]
        return {
            "Id": query["Id"],
            "Label": metric["MetricName"],
            "Timestamps": times,
            "Values": list(known.values()),
            "StatusCode": "Complete",
        }

    def _check_frequency(self, endpoint: str, period: int) -> None:
        found = self.cloud.sagemaker.endpoints.get(endpoint)
        configuration = self.cloud.sagemaker.configurations.get(found.configuration, {}) if found else {}
        published = configuration.get("MetricsConfig", {}).get("MetricPublishFrequencyInSeconds", 60)
        if period < published:
            raise invalid(f"metrics of {endpoint} are published every {published} s, not {period}")


def _value(seconds: list[Invocations], metric: str, stat: str) -> float | None:
    if metric != "ModelLatency":
        if stat != "Sum":
            raise invalid(f"{metric} has sums, not {stat}")
        return float(sum(one.counts.get(metric, 0) for one in seconds))
    every = sorted(value for one in seconds for value in one.latency_us)
    if stat == "SampleCount":
        return float(len(every))
    found = _RANK.fullmatch(stat)
    if found is None:
        raise invalid(f"The value {stat} for parameter Stat is not supported.")
    return 100.0 * bisect.bisect_right(every, float(found[1])) / len(every) if every else None


class Scaling:
    """Scalable targets and their policies."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.targets: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, Any]] = {}

    def is_registered(self, resource: str) -> bool:
        return resource in self.targets

    def register_scalable_target(self, asked: dict[str, Any]) -> dict[str, Any]:
        _, name, _, variant = asked["ResourceId"].split("/")
        found = self.cloud.sagemaker.endpoints.get(name)
        if found is None or variant not in found.variants:
            raise invalid(f"Could not find {asked['ResourceId']}.")
        if asked["MinCapacity"] < 1:
            raise invalid("MinCapacity must be at least 1.")
        self.targets[asked["ResourceId"]] = asked
        return {"ScalableTargetARN": f"{_SCALING_ARN}:scalable-target/{name}"}

    def put_scaling_policy(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["ResourceId"] not in self.targets:
            raise Fault(
                "ObjectNotFoundException", f"No scalable target registered for {asked['ResourceId']}."
            )
        self.policies[asked["ResourceId"]] = asked
        return {
            "PolicyARN": f"arn:aws:autoscaling:eu-central-1:123456789012:scalingPolicy:{asked['PolicyName']}",
            "Alarms": [],
        }

    def deregister_scalable_target(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["ResourceId"] not in self.targets:
            raise Fault("ObjectNotFoundException", f"No scalable target found for {asked['ResourceId']}.")
        del self.targets[asked["ResourceId"]]
        self.policies.pop(asked["ResourceId"], None)
        return {}


class S3:
    """Buckets as mappings; the few calls that Interlock makes, path-style."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.objects: dict[str, dict[str, bytes]] = {}
        self.puts: list[str] = []

    def keys(self, bucket: str) -> list[str]:
        return sorted(self.objects.get(bucket, {}))

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self.objects.setdefault(bucket, {})[key] = body
        self.puts.append(key)

    def get(self, bucket: str, key: str) -> bytes:
        try:
            return self.objects[bucket][key]
        except KeyError:
            raise Fault("NoSuchKey", "The specified key does not exist.", 404) from None

    def listing(self, bucket: str, prefix: str, after: str, size: int) -> bytes:
        """ListObjectsV2's XML."""
        keys = [key for key in self.keys(bucket) if key.startswith(prefix) and key > after]
        page = keys[:size]
        parts = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[bucket][key])}</Size></Contents>"
            for key in page
        ]
        more = len(keys) > size
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>{size}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(parts)}</ListBucketResult>"
        ).encode()
