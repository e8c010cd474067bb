"""Live requests from the table that Vertex's request-response logging writes in BigQuery.

The table has one row a request, without its status: only what the container answered is logged.
Rows are written late and not in order, so a reader stays `delay_s` behind and takes rows by
(logging_time, request_id).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serving.endpoint import Exchange
from serving.errors import Refused
from serving.vertex.google_apis import GoogleApis, patient, translated
from serving.vertex.state import Deployed

PATH = "/invocations"
_QUERY = """
SELECT logging_time, CAST(request_id AS STRING) AS request_id, request_payload, response_payload
FROM `{table}`
WHERE endpoint = @endpoint AND deployed_model_id = @deployed
  AND (logging_time > @since OR (logging_time = @since AND CAST(request_id AS STRING) > @last_id))
  AND logging_time <= @until
ORDER BY logging_time, request_id
LIMIT {limit}
"""


class LogRows(Protocol):
    """Rows of the log of one deployed version after a position, oldest first."""

    def after(
        self, deployed: str, since: float, last_id: str, *, until: float, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        """At most `limit` rows; times are seconds since the epoch."""
        ...


class BigQueryRows:
    """The rows as BigQuery has them."""

    def __init__(self, google: GoogleApis, table: str, endpoint_id: str) -> None:
        self._google = google
        self._table = table
        self._endpoint_id = endpoint_id

    def after(
        self, deployed: str, since: float, last_id: str, *, until: float, limit: int
    ) -> Sequence[Mapping[str, Any]]:
        """Asks with parameters, never with text put together; `table` comes from the policy's pattern."""
        from google.cloud.bigquery import QueryJobConfig, ScalarQueryParameter

        parameters = [
            ScalarQueryParameter("endpoint", "STRING", self._endpoint_id),
            ScalarQueryParameter("deployed", "STRING", deployed),
            ScalarQueryParameter("since", "TIMESTAMP", _moment(since)),
            ScalarQueryParameter("last_id", "STRING", last_id),
            ScalarQueryParameter("until", "TIMESTAMP", _moment(until)),
        ]
        text = _QUERY.format(table=self._table, limit=int(limit))
        with translated(f"read the request log {self._table}"):
            rows = self._google.bigquery.query_and_wait(
                text, job_config=QueryJobConfig(query_parameters=parameters), retry=patient()
            )
            return [dict(row.items()) for row in rows]


def read_exchanges(
    rows: LogRows, deployed: Deployed, cursor: str, *, until: float, limit: int
) -> tuple[list[Exchange], str]:
    """Exchanges of one deployed version after a cursor, oldest first, and the cursor behind them.

    A cursor is `seconds|request id`. Only answered requests are logged, so `status` is 200.
    `service_ms` is not known and 0.
    """
    since, _, last_id = cursor.partition("|")
    if until <= float(since):
        return [], cursor
    found: list[Exchange] = []
    for row in rows.after(deployed.id, float(since), last_id, until=until, limit=limit):
        time = row["logging_time"].timestamp()
        last_id, cursor = str(row["request_id"]), f"{time!r}|{row['request_id']}"
        found.append(
            Exchange(
                request_id=last_id,
                time=time,
                version=deployed.version,
                path=PATH,
                content_type="application/json",
                request=_body(row["request_payload"], "instances"),
                status=200,
                response=_body(row["response_payload"], "predictions"),
                service_ms=0.0,
            )
        )
    return found, cursor


def _body(parts: Sequence[str], name: str) -> bytes:
    """The body that was sent: as it is where it was logged as one, else the logged instances put together.

    Calls to any path of a container are logged whole; Vertex's own prediction route logs each instance.
    """
    if len(parts) == 1:
        return parts[0].encode()
    try:
        return json.dumps({name: [json.loads(part) for part in parts]}).encode()
    except ValueError as error:
        raise Refused(
            f"a row of the request log holds no JSON ({error}). Next: log JSON requests only, or leave "
            "vertex.request_log out"
        ) from error


def _moment(seconds: float) -> Any:
    import datetime

    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
