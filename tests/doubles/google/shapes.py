"""What each of the double's answers may contain, by Google's own types.

Vertex AI, operations and distributions are parsed into their protobuf types, which know no other fields.
Of Cloud Monitoring, Cloud Storage and BigQuery no types are installed here: their fields are
listed from the public REST references (v3, v1 and v2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.api import distribution_pb2, metric_pb2, monitored_resource_pb2  # noqa: TID253
from google.cloud import aiplatform_v1 as vertex  # noqa: TID253
from google.longrunning import operations_pb2  # noqa: TID253
from google.protobuf import json_format  # noqa: TID253

_TIME_SERIES = {"metric", "resource", "metadata", "metricKind", "valueType", "points", "unit", "description"}
_VALUES = {"boolValue", "int64Value", "doubleValue", "stringValue", "distributionValue"}
_OBJECT = {"kind", "id", "selfLink", "bucket", "name", "size", "generation", "metageneration", "contentType"}
_OBJECT |= {"timeCreated", "updated", "storageClass", "md5Hash", "crc32c", "etag", "mediaLink", "metadata"}
_QUERY = {"kind", "schema", "jobReference", "totalRows", "pageToken", "rows", "totalBytesProcessed"}
_QUERY |= {"jobComplete", "errors", "cacheHit", "numDmlAffectedRows", "sessionInfo", "dmlStats", "location"}
_QUERY |= {"queryId", "jobCreationReason", "creationTime", "startTime", "endTime", "totalSlotMs"}
_FIELD = {"name", "type", "mode", "fields", "description", "maxLength", "precision", "scale"}


def check_answer(verb: str, answer: Any) -> None:
    """Raise `AssertionError` for a field that the service does not have."""
    CHECKS[verb](answer)


def _of(kind: Any) -> Callable[[Any], None]:
    def check(answer: Any) -> None:
        _parsed(answer, kind.pb(kind()) if hasattr(kind, "pb") else kind())

    return check


def _parsed(answer: Any, message: Any) -> None:
    try:
        json_format.ParseDict(answer, message, ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise AssertionError(str(error)) from error


def _only(answer: Any, allowed: set[str]) -> None:
    unknown = set(answer) - allowed
    assert not unknown, f"there are no fields {sorted(unknown)}"


def _time_series(answer: Any) -> None:
    _only(answer, {"timeSeries", "nextPageToken", "executionErrors", "unit"})
    for series in answer["timeSeries"]:
        _only(series, _TIME_SERIES)
        _parsed(series["metric"], metric_pb2.Metric())
        _parsed(series["resource"], monitored_resource_pb2.MonitoredResource())
        for point in series["points"]:
            _only(point, {"interval", "value"})
            _only(point["interval"], {"startTime", "endTime"})
            _only(point["value"], _VALUES)
            if "distributionValue" in point["value"]:
                _parsed(point["value"]["distributionValue"], distribution_pb2.Distribution())


def _query(answer: Any) -> None:
    _only(answer, _QUERY)
    _only(answer["schema"], {"fields"})
    for field in answer["schema"]["fields"]:
        _only(field, _FIELD)
    for row in answer["rows"]:
        _only(row, {"f"})
        assert len(row["f"]) == len(answer["schema"]["fields"])
        for cell in row["f"]:
            _only(cell, {"v"})


def _object(answer: Any) -> None:
    _only(answer, _OBJECT)


def _upload(answer: Any) -> None:
    if isinstance(answer, tuple):  # a resumable upload begins with an address and no body
        status, headers = answer
        assert status == 200
        _only(headers, {"Location"})
    else:
        _object(answer)


def _container(answer: Any) -> None:
    """Whatever the version says."""
    status, body = answer
    assert isinstance(status, int)
    assert isinstance(body, bytes)


_OPERATION = _of(operations_pb2.Operation)
CHECKS: dict[str, Callable[[Any], None]] = {
    "create_endpoint": _OPERATION,
    "get_endpoint": _of(vertex.Endpoint),
    "update_endpoint": _of(vertex.Endpoint),
    "deploy_model": _OPERATION,
    "undeploy_model": _OPERATION,
    "get_operation": _OPERATION,
    "upload_model": _OPERATION,
    "get_model": _of(vertex.Model),
    "invoke": _container,
    "get_object": _object,
    "put_object": _upload,
    "put_rest": _object,
    "time_series": _time_series,
    "query": _query,
}
