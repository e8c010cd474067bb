"""SageMaker's data capture on S3 as `Exchange`s.

Objects lie under PREFIX/endpoint/variant/yyyy/mm/dd/hh/mm-ss-....jsonl and come minutes late, in no
order. So a reader stays behind a watermark: it takes an object only once everything that is named before
it has had its time to arrive, and then never looks back. Failed requests have no output and
are not among them; nor are direct calls of ours, which carry an inference id of their own.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from serving.endpoint import Exchange
from serving.errors import Refused
from serving.sagemaker.clients import Clients, translated

_LOG = logging.getLogger("interlock.sagemaker")
REPLAY_PREFIX = "interlock-replay-"
"""Begins the inference id of every direct call, so that no replay is replayed once more."""
_NAME = re.compile(r"/(\d{4})/(\d\d)/(\d\d)/(\d\d)/(\d\d)-(\d\d)")
_OK = 200


class CaptureReader:
    """Reads one endpoint's captures. `uri` is the data capture's destination (s3://bucket/prefix)."""

    def __init__(self, uri: str, endpoint: str, clients: Clients) -> None:
        self._bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self._endpoint = endpoint
        self._prefix = f"{prefix}/{endpoint}"
        self._clients = clients

    def start(self, variant: str, at: float) -> str:
        """A cursor before everything that is captured from `at` (seconds since the epoch) on."""
        key = f"{self._prefix}/{variant}/{datetime.fromtimestamp(at, UTC):%Y/%m/%d/%H/%M-%S}"
        return f"{variant}|{key}|0"

    def read(self, cursor: str, version: str, *, until: float, limit: int) -> tuple[list[Exchange], str]:
        """At most `limit` exchanges since the cursor from objects named before `until`, and where to go on.

        Raises `Refused` for a cursor that is not of this endpoint.
        """
        variant, key, line = self._position(cursor)
        found: list[Exchange] = []
        for name in self._objects(variant, key, again=line > 0, until=until):
            start = line if name == key else 0
            lines = self._lines(name)
            for number, text in enumerate(lines[start:], start):
                exchange = self._exchange(text, version)
                if exchange is not None:
                    found.append(exchange)
                if len(found) >= limit:
                    return found, f"{variant}|{name}|{number + 1}"
            key, line = name, len(lines)
        return found, f"{variant}|{key}|{line}"

    def _position(self, cursor: str) -> tuple[str, str, int]:
        variant, _, rest = cursor.partition("|")
        key, _, line = rest.rpartition("|")
        if not key.startswith(f"{self._prefix}/{variant}/") or not line.isdigit():
            raise Refused(
                f"{self._endpoint}: {cursor!r} is not a cursor of this endpoint. Next: start without one"
            )
        return variant, key, int(line)

    def _objects(self, variant: str, key: str, *, again: bool, until: float) -> Iterator[str]:
        """Keys after `key` (and it itself where its lines were not all read), in order, as far as is safe."""
        if again:
            yield key
        asked: dict[str, Any] = {
            "Bucket": self._bucket,
            "Prefix": f"{self._prefix}/{variant}/",
            "StartAfter": key,
        }
        while True:
            with translated(f"{self._endpoint}: list captures"):
                page: Any = self._clients.s3.list_objects_v2(**asked)
            for one in page.get("Contents", []):
                began = _time_of(one["Key"])
                if began is None:
                    continue
                if began >= until:
                    return
                yield str(one["Key"])
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _lines(self, key: str) -> list[bytes]:
        with translated(f"{self._endpoint}: read capture {key}"):
            body: bytes = self._clients.s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return [line for line in body.split(b"\n") if line.strip()]

    def _exchange(self, line: bytes, version: str) -> Exchange | None:
        try:
            record = json.loads(line)
            data, about = record["captureData"], record["eventMetadata"]
            if "endpointOutput" not in data or str(about.get("inferenceId", "")).startswith(REPLAY_PREFIX):
                return None
            asked, answered = data["endpointInput"], data["endpointOutput"]
            return Exchange(
                request_id=str(about.get("inferenceId") or about["eventId"]),
                time=datetime.fromisoformat(about["inferenceTime"]).timestamp(),
                version=version,
                path="/invocations",
                content_type=str(asked["observedContentType"]),
                request=_payload(asked),
                status=_OK,
                response=_payload(answered),
                service_ms=0.0,
            )
        except (ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s: a captured line cannot be read: %r", self._endpoint, error)
            return None


def _payload(part: Mapping[str, Any]) -> bytes:
    """Base64 unless the content type was listed as JSON or CSV."""
    data = str(part["data"])
    return base64.b64decode(data) if part["encoding"] == "BASE64" else data.encode()


def _time_of(key: str) -> float | None:
    """When an object was begun, from its name; None for one that is not a capture."""
    found = _NAME.search(key)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in found.groups())
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
