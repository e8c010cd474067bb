"""A broken answer is a failure of its version, and a blocked one, unless the policy says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serving.capture.streams import read_usage
from serving.llm.measures import with_measures
from tests.serving.capture.exchanges import record, recorder


def answer(*reasons: str) -> bytes:
    choices = [{"index": index, "finish_reason": reason} for index, reason in enumerate(reasons)]
    return json.dumps({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}).encode()


def test_any_blocked_choice_makes_a_blocked_answer() -> None:
    assert read_usage(answer("stop", "length")).finish_reason == "stop"
    assert read_usage(answer("stop", "content_filter")).finish_reason == "content_filter"


@pytest.mark.parametrize("counts", [True, False])
def test_blocked_answers_fail(tmp_path: Path, counts: bool) -> None:
    recording = recorder(tmp_path, measures_dir=tmp_path / "m")
    recording.offer(record(1, response=answer("stop")))
    recording.offer(record(2, response=answer("content_filter")))
    recording.close()
    frame = pd.DataFrame(
        {
            "request_id": ["r-1", "r-2", "r-3"],
            "time": [1_795_340_000.0] * 3,
            "total_ms": 5.0,
            "status": [200, 200, 500],
            "failed": [False, False, True],
        }
    )
    # segments are found by when they were opened, which is now
    frame["time"] = int(next((tmp_path / "m").iterdir()).name.split(".")[1].split("-")[0]) / 1000
    ends = ("content_filter",) if counts else ()
    joined = with_measures(frame, tmp_path / "m", failing_ends=ends, sleep=lambda _: None)
    assert joined["failed"].tolist() == [False, counts, True]
    assert joined["failed"].dtype == bool


ENDS = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
BREAKS = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


@pytest.mark.parametrize(
    ("seen", "fails"),
    [
        ({"response": BREAKS + b"data: [DONE]\n\n"}, True),
        ({"response": BREAKS, "status": 0}, False),
        ({"response": BREAKS, "truncated": True, "tail": ENDS}, False),
        ({"response": b"", "truncated": True, "tail": BREAKS}, True),
        ({"response": b"", "truncated": True}, False),
    ],
    ids=["ended early", "the client left", "a long stream", "a long stream that breaks", "a long document"],
)
def test_broken_answers_fail(tmp_path: Path, seen: dict[str, Any], fails: bool) -> None:
    recording = recorder(tmp_path, measures_dir=tmp_path / "m")
    recording.offer(record(1, **seen))
    recording.close()
    opened = int(next((tmp_path / "m").iterdir()).name.split(".")[1].split("-")[0]) / 1000
    row = {"request_id": "r-1", "time": opened, "total_ms": 5.0, "status": 200, "failed": False}
    joined = with_measures(pd.DataFrame([row]), tmp_path / "m", sleep=lambda _: None)
    assert joined["failed"].tolist() == [fails]


def test_answers_that_were_cut_short_are_known(tmp_path: Path) -> None:
    recording = recorder(tmp_path, measures_dir=tmp_path / "m")
    for number, reason in enumerate(("stop", "length"), start=1):
        recording.offer(record(number, response=answer(reason)))
    recording.close()
    opened = int(next((tmp_path / "m").iterdir()).name.split(".")[1].split("-")[0]) / 1000
    frame = pd.DataFrame(
        {
            "request_id": ["r-1", "r-2", "r-3"],
            "time": opened,
            "total_ms": 5.0,
            "status": [200, 200, 500],
            "failed": [False, False, True],
        }
    )
    joined = with_measures(frame, tmp_path / "m", sleep=lambda _: None)
    assert joined["failed"].tolist() == [False, False, True]
    strict = with_measures(frame, tmp_path / "m", failing_ends=("length",), sleep=lambda _: None)
    assert strict["failed"].tolist() == [False, True, True]
    assert joined["cut_short"].tolist()[:2] == [0.0, 1.0]
    assert joined["cut_short"].isna().tolist() == [False, False, True]
