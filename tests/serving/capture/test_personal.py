"""Personal data goes out of texts before anything is recorded, exact spool or not as the policy says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.capture.redact import Redaction
from serving.capture.spool import read_exchanges
from tests.serving.capture.exchanges import record, recorder

EMAIL = "ann@example.com"
CHAT = {"messages": [{"role": "user", "content": [{"type": "text", "text": f"mail {EMAIL}!"}]}]}
FROM_THE_START = json.dumps({"writers": {}, "lost": 0})
STREAM = b"".join(
    b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": part}}]}).encode() + b"\n\n"
    for part in ("To ann@exa", "mple.com, ", "gladly")
)


def personal(request: Any, content_type: str = "application/json") -> str | None:
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return Redaction.of([], [], b"", ["email", "credit_card"]).request(body, content_type)


def test_texts_of_conversations_are_redacted_and_nothing_else() -> None:
    kept = personal(CHAT | {"temperature": 0.5})
    assert kept is not None
    assert json.loads(kept) == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "mail <email>!"}]}],
        "temperature": 0.5,
    }


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [{"said": EMAIL}]},
        {"dataframe_split": {"columns": ["said"], "data": [[EMAIL]]}},
        {"messages": [{"tool_calls": [{"function": {"arguments": '{"to": "ann\\u0040example.com"}'}}]}]},
        {"inputs": [{EMAIL: 1}]},
        {"inputs": [{"said": "ann\uff20example.com"}]},
    ],
)
def test_wherever_they_stand(body: dict[str, Any]) -> None:
    kept = personal(body)
    assert kept is not None
    assert "<email>" in kept
    assert "ann" not in kept


def test_csv_is_redacted_cell_by_cell() -> None:
    assert personal(f"n,said\n1,write {EMAIL}\n".encode(), "text/csv") == "n,said\n1,write <email>\n"


def test_what_cannot_be_read_is_not_recorded() -> None:
    assert personal(b"mail ann@example.com") is None


@pytest.mark.parametrize("spool_too", [False, True])
def test_capture_and_spool_hold_what_the_policy_says(tmp_path: Path, spool_too: bool) -> None:
    recording = recorder(
        tmp_path,
        personal=["email"],
        spool_personal=["email"] if spool_too else [],
        measures_dir=tmp_path / "m",
    )
    recording.offer(record(1, request=json.dumps(CHAT).encode(), response=STREAM))
    recording.offer(record(2, request=f"no json {EMAIL}".encode(), response=b"{}"))
    recording.close()
    durable = "".join(path.read_text() for path in (tmp_path / "captures" / "live").iterdir())
    assert "<email>" in durable
    assert "ann" not in durable
    exchanges, _ = read_exchanges(tmp_path / "spool", FROM_THE_START, 10, None)
    assert len(exchanges) == (1 if spool_too else 2)
    first = exchanges[0]
    assert (EMAIL.encode() in first.request) is not spool_too
    if spool_too:
        assert json.loads(first.response)["choices"][0]["message"]["content"] == "To <email>, gladly"
    else:
        assert first.response == STREAM
