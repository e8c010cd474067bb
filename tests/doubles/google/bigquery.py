"""The part of the double that is BigQuery: the one query that reads the request log."""

from __future__ import annotations

import datetime
import json
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

_LOG_TABLE = re.compile(r"FROM `([^`]+)`")


class BigQuery:
    """Rows of the log; each becomes visible `log_delay_s` after its request."""

    clock: Callable[[], float]
    log_delay_s: float
    rows: list[dict[str, Any]]
    _lock: threading.RLock

    def query(self, project: str, *, body: bytes, **_: Any) -> Any:
        asked = json.loads(body)
        given = {one["name"]: one["parameterValue"].get("value") for one in asked["queryParameters"]}
        table = _LOG_TABLE.search(asked["query"])
        limit = re.search(r"LIMIT (\d+)", asked["query"])
        assert table is not None
        assert limit is not None
        since, until = instant(given["since"]), instant(given["until"])
        with self._lock:
            found = [
                row
                for row in sorted(self.rows, key=lambda row: (row["time"], row["id"]))
                if (row["endpoint"], row["deployed"]) == (given["endpoint"], given["deployed"])
                and (row["time"], row["id"]) > (since, given["last_id"] or "")
                and row["time"] <= until
                and row["time"] + self.log_delay_s <= self.clock()
            ][: int(limit[1])]
        names = (
            ("logging_time", "TIMESTAMP", "NULLABLE"),
            ("request_id", "STRING", "NULLABLE"),
            ("request_payload", "STRING", "REPEATED"),
            ("response_payload", "STRING", "REPEATED"),
        )
        rows = [
            [f"{round(row['time'] * 1e6)}", row["id"], [{"v": row["request"]}], [{"v": row["response"]}]]
            for row in found
        ]
        return {
            "kind": "bigquery#queryResponse",
            "jobComplete": True,
            "jobReference": {"projectId": project, "jobId": uuid.uuid4().hex, "location": "US"},
            "schema": {"fields": [{"name": n, "type": kind, "mode": mode} for n, kind, mode in names]},
            "totalRows": str(len(rows)),
            "rows": [{"f": [{"v": value} for value in row]} for row in rows],
        }


def instant(stamp: str) -> float:
    """Seconds since the epoch."""
    return datetime.datetime.fromisoformat(stamp.strip().replace(" ", "T")).timestamp()
