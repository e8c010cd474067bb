"""The middleware as a server sees it: transparent, and complete in what it keeps."""

import ast
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serving.capture.generation import GenerationCapture
from serving.capture.middleware import CaptureMiddleware
from serving.capture.recorder import CaptureConfig
from serving.capture.spool import read_exchanges
from tests.serving.capture.exchanges import HEADERS, recorder

ROOM = Path(__file__).parents[3] / "serving" / "capture"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body[:3], "more_body": True})
    await send({"type": "http.response.body", "body": body[3:]})


def call(
    app: Any,
    chunks: Sequence[bytes],
    *,
    path: str = "/invocations",
    headers: Any = HEADERS,
    method: str = "POST",
) -> list[dict[str, Any]]:
    incoming = [
        {"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1}
        for i, chunk in enumerate(chunks)
    ]
    outgoing: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0) if incoming else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        outgoing.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(app(scope, receive, send))
    return outgoing


def captured(folder: Path) -> list[dict[str, Any]]:
    lines = [
        line
        for path in sorted((folder / "captures" / "live").iterdir())
        for line in path.read_text().splitlines()
    ]
    return [document for line in lines if "time" in (document := json.loads(line))]


def test_passes_every_message_on_and_keeps_both_bodies(tmp_path: Path) -> None:
    middleware = CaptureMiddleware(echo, recorder=recorder(tmp_path))
    _, cursor = read_exchanges(tmp_path / "spool", None, 1)
    sent = call(middleware, [b'{"a"', b": 1}"])
    assert [message.get("body") for message in sent] == [None, b'{"a', b'": 1}']
    middleware.recorder.close()
    [exchange], _ = read_exchanges(tmp_path / "spool", cursor, 10)
    assert exchange.request == exchange.response == b'{"a": 1}'
    [line] = captured(tmp_path)
    assert line["inputs"] == line["outputs"] == '{"a": 1}'
    assert (line["request_id"], line["version"], line["tenant"], line["user"]) == ("r-1", "3", "acme", "abcd")
    assert (line["endpoint"], line["slot"], line["status"], line["replay"]) == ("flights", "blue", 200, False)
    assert line["latency_ms"] > 0


def test_records_a_fault_as_500_and_lets_it_through(tmp_path: Path) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("boom")

    middleware = CaptureMiddleware(fails, recorder=recorder(tmp_path))
    with pytest.raises(RuntimeError, match="boom"):
        call(middleware, [b"{}"])
    middleware.recorder.close()
    assert [line["status"] for line in captured(tmp_path)] == [500]


@pytest.mark.parametrize("capture", [CaptureMiddleware, GenerationCapture])
@pytest.mark.parametrize(("client_leaves", "status"), [(False, 500), (True, 0)])
def test_an_answer_that_breaks_off_is_a_fault_unless_the_client_left(
    tmp_path: Path, capture: Any, client_leaves: bool, status: int
) -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the begin", "more_body": True})
        if client_leaves:
            assert (await receive())["type"] == "http.disconnect"
        raise RuntimeError("boom")

    middleware = capture(breaks, recorder(tmp_path).config)
    with pytest.raises(RuntimeError, match="boom"):
        call(middleware, [b"{}"])
    middleware.recorder.close()
    assert [line["status"] for line in captured(tmp_path)] == [status]


def test_replays_are_marked_and_never_spooled(tmp_path: Path) -> None:
    middleware = CaptureMiddleware(echo, recorder=recorder(tmp_path))
    _, cursor = read_exchanges(tmp_path / "spool", None, 1)
    call(middleware, [b"{}"], headers=(*HEADERS, (b"x-interlock-replay", b"1")))
    middleware.recorder.close()
    assert [line["replay"] for line in captured(tmp_path)] == [True]
    assert read_exchanges(tmp_path / "spool", cursor, 10)[0] == []


@pytest.mark.parametrize(
    ("path", "method"), [("/metrics", "GET"), ("/invocations", "GET"), ("/other", "POST")]
)
def test_other_paths_leave_no_trace(tmp_path: Path, path: str, method: str) -> None:
    middleware = CaptureMiddleware(echo, recorder=recorder(tmp_path))
    call(middleware, [b"{}"], path=path, method=method)
    middleware.recorder.close()
    assert not (tmp_path / "captures").exists()


def test_bodies_beyond_the_limit_pass_whole_but_are_not_kept(tmp_path: Path) -> None:
    middleware = CaptureMiddleware(echo, recorder=recorder(tmp_path, body_bytes_max=100))
    sent = call(middleware, [b"x" * 90])
    assert sum(len(message.get("body", b"")) for message in sent) == 90
    middleware.recorder.close()
    [line] = captured(tmp_path)
    assert (line["inputs"], line["outputs"]) == (None, None)
    assert middleware.recorder.counts.bodies_withheld == 1


def test_redaction_happens_before_anything_durable(tmp_path: Path) -> None:
    middleware = CaptureMiddleware(echo, recorder=recorder(tmp_path, drop=["ssn"], spool_dir=None))
    call(middleware, [b'{"inputs": {"ssn": ["tattletale"], "age": [3]}}'])
    call(middleware, [b'{"inputs": [["tattletale"]]}'])
    middleware.recorder.close()
    assert b"tattletale" not in b"".join(p.read_bytes() for p in (tmp_path / "captures").rglob("*.jsonl"))
    assert [line["inputs"] for line in captured(tmp_path)] == ['{"inputs":{"age":[3]}}', None]


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    slow = recorder(tmp_path, queue_records_max=3)
    middleware = CaptureMiddleware(echo, recorder=slow)
    with slow._drain_lock:
        for _ in range(5):
            call(middleware, [b"{}"])
        assert slow.counts.dropped == 2
    slow.close()
    assert len(captured(tmp_path)) == 3


def test_a_sample_is_the_same_on_every_replica(tmp_path: Path) -> None:
    kept: list[list[str]] = []
    for name in ("a", "b"):
        middleware = CaptureMiddleware(echo, recorder=recorder(tmp_path / name, sample=0.5, replica=name))
        for number in range(200):
            call(middleware, [b"{}"], headers=((b"x-request-id", b"r-%d" % number),))
        middleware.recorder.close()
        kept.append([line["request_id"] for line in captured(tmp_path / name)])
    assert kept[0] == kept[1]
    assert 60 < len(kept[0]) < 140


def test_a_disk_that_refuses_never_reaches_the_client(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    middleware = CaptureMiddleware(echo, recorder=recorder(tmp_path))
    assert call(middleware, [b"{}"])[0]["status"] == 200
    middleware.recorder.close()
    assert middleware.recorder.counts.write_errors == 1
    assert len(captured(tmp_path)) == 1


def test_configured_by_the_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "endpoint": "chat",
        "slot": "green",
        "version": "7",
        "replica": "chat-green-1",
        "captures_dir": str(tmp_path / "captures"),
    }
    monkeypatch.setenv("INTERLOCK_CAPTURE", json.dumps(values))
    middleware = CaptureMiddleware(echo)
    call(middleware, [b"{}"], path="/v1/chat/completions", headers=())
    middleware.recorder.close()
    [line] = captured(tmp_path)
    assert (line["endpoint"], line["version"]) == ("chat", "7")
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert (
        CaptureConfig.from_environment({"INTERLOCK_CAPTURE": f"@{tmp_path / 'config.json'}"}).slot == "green"
    )
    with pytest.raises(ValueError, match="INTERLOCK_CAPTURE"):
        CaptureConfig.from_environment({})


@pytest.mark.parametrize("module", ["middleware", "recorder", "redact", "segments"])
def test_standard_library_only(module: str) -> None:
    tree = ast.parse((ROOM / f"{module}.py").read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names or name.startswith("serving.capture."), name
