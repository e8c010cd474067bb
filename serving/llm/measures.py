"""Joins what a language model's replicas measured to the gateway's requests, by the request's id.

Replicas write a short line for every live request within 100 ms of its end; the gateway logs the
request as it ends. So a look waits a moment for lines that cannot have been written yet, and what
is still missing then (a replica that was killed, an answer without usage) stays unknown: NaN.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.capture.recorder import DRAIN_S, MEASURES_SECONDS_MAX
from serving.capture.segments import list_segments

if TYPE_CHECKING:
    import pandas as pd

MEASURE_COLUMNS = ("ttft_ms", "itl_ms", "tokens_in", "tokens_out", "cost_usd")
_CUT_SHORT = "length"
"""The finish reason of an answer whose tokens were used up."""
_CLOCK_SLACK_S = 5.0
_WAIT_S = 5 * DRAIN_S


def with_measures(
    frame: pd.DataFrame,
    folder: Path,
    *,
    failing_ends: Collection[str] = (),
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> pd.DataFrame:
    """The observations with `MEASURE_COLUMNS` and `cut_short` (float64, NaN unknown), and `stratum` (text).

    `service_ms` becomes the time to the last byte as the replica saw it: the gateway's own, to the
    first byte of the answer, says nothing of a stream. A broken answer counts as `failed`: the gateway
    sees a 200. So does one that ended for a reason in `failing_ends`: the policy's, blocked or cut short.
    """
    import pandas as pd

    ended = frame["time"] + frame["total_ms"] / 1000
    lines: dict[str, dict[str, Any]] = {}
    if len(frame):
        window = (float(ended.min()), float(ended.max()))
        lines = _read(folder, *window)
        wanted = frame.loc[(frame["status"] == 200) & (ended > now() - _WAIT_S), "request_id"]
        if any(request_id not in lines for request_id in wanted):
            sleep(_WAIT_S)
            lines = _read(folder, *window)
    found = [lines.get(request_id, {}) for request_id in frame["request_id"]]
    joined = frame.copy()
    for name in MEASURE_COLUMNS:
        joined[name] = pd.array([line.get(name) for line in found], dtype="Float64").to_numpy(
            "float64", na_value=float("nan")
        )
    ends = [line.get("finish_reason") or "" for line in found]
    joined["cut_short"] = pd.Series(
        [float(end == _CUT_SHORT) if end else float("nan") for end in ends],
        index=frame.index,
        dtype="float64",
    )
    joined["stratum"] = pd.Series(
        [line.get("stratum") or "" for line in found], index=frame.index, dtype=object
    )
    joined["failed"] |= pd.Series(
        [line.get("broken") is True for line in found], index=frame.index, dtype=bool
    )
    joined["failed"] |= pd.Series([end in failing_ends for end in ends], index=frame.index, dtype=bool)
    whole = pd.Series([line.get("service_ms") for line in found], index=frame.index, dtype="float64")
    joined["service_ms"] = whole.fillna(frame["total_ms"]).astype("float64")
    return joined


def _read(folder: Path, first: float, last: float) -> dict[str, dict[str, Any]]:
    """Lines by request id, of segments that may hold a request that ended in the window."""
    found: dict[str, dict[str, Any]] = {}
    for name in list_segments(folder):
        opened = name.opened_ms / 1000
        if first - MEASURES_SECONDS_MAX - _CLOCK_SLACK_S <= opened <= last + _CLOCK_SLACK_S:
            try:
                text = (folder / name.filename).read_bytes()
            except FileNotFoundError:
                continue
            for line in text.splitlines():
                try:
                    document = json.loads(line)
                    found[document["request_id"]] = document
                except (ValueError, KeyError, TypeError):
                    continue  # the trailer, or a line half written
    return found
