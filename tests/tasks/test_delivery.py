"""Alerts on their way out: a real webhook receiver, a dead one, one that hangs, and secrets kept."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from configs.policy import Policy
from configs.settings import Settings
from serving.errors import SetupError
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.delivery import urls_of
from tasks.messenger import Messenger, send_again
from tests.tasks.doubles import HandClock, MemoryRegistry
from tests.tasks.test_transitions import POLICY

SECRET = "T0kenNobodyMaySee"


class Receiver(ThreadingHTTPServer):
    """A webhook on loopback that keeps what it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append({"path": self.path, **json.loads(body)})
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server_address[1]}/hooks/{SECRET}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"json://127.0.0.1:{listening.getsockname()[1]}/{SECRET}?rto=20"


class Logged(logging.Handler):
    """What reaches the log. pytest's own handler would also see what does not propagate."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.name} {record.getMessage()}\n"


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler, root = Logged(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


class Now(Messenger):
    """Sends before it returns, and no event: there is no Prefect here."""

    def send(self, alert: Any, timeout_s: float) -> None:
        self.send_now(alert, timeout_s)


def bench_with(folder: Path, **notify: Any) -> Bench:
    policy = Policy.model_validate(POLICY.model_dump() | {"notify": notify})
    settings, clock = Settings(state_dir=folder), HandClock()
    registry: Any = MemoryRegistry()
    return Bench(policy, settings, registry=registry, messenger=Now(settings, clock), clock=clock)


def tell(bench: Bench, severity: Any = "critical", key: str = "k") -> None:
    alert(
        bench, severity, "all is lost", numbers={"errors": 7}, next_step="interlock status flights", key=key
    )


def lines(bench: Bench, what: str) -> list[dict[str, Any]]:
    return [dict(line.details) for line in bench.journal.audit("flights", what=(what,))]


def test_a_message_says_what_happened_the_numbers_the_next_step_and_where_to_look(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER", receiver.url)
    bench = bench_with(tmp_path, critical=["env:PAGER"])
    tell(bench)
    (got,) = receiver.got
    assert (got["title"], got["type"]) == ("[CRITICAL] flights: all is lost", "failure")
    assert got["message"].splitlines() == [
        "all is lost",
        "errors 7",
        "Next: interlock status flights",
        "http://127.0.0.1:4200",
        "Owner: me@example.com",
    ]
    assert [line["address"] for line in lines(bench, "alert sent")] == ["env:PAGER"]


def test_each_severity_has_its_own_route(tmp_path: Path, receiver: Receiver) -> None:
    bench = bench_with(tmp_path, critical=["file:pager"], warning=["file:chat"])
    for name in ("pager", "chat"):
        write_secret(bench, name, f"{receiver.url}/{name}")
    for severity in ("critical", "warning", "info"):
        tell(bench, severity, key=severity)
    assert [got["path"].rpartition("/")[2] for got in receiver.got] == ["pager", "chat"]


def write_secret(bench: Bench, name: str, text: str, mode: int = 0o600) -> None:
    path = bench.settings.secrets_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    path.chmod(mode)


def test_a_dead_address_does_not_delay_another_and_the_trail_says_so_without_its_secret(
    tmp_path: Path, receiver: Receiver, silent: str, logged: Logged
) -> None:
    bench = bench_with(tmp_path, critical=["file:silent", "file:closed", "file:chat"], timeout_s=1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        write_secret(bench, "closed", f"json://127.0.0.1:{closed.getsockname()[1]}/{SECRET}")
        write_secret(bench, "silent", silent)
        write_secret(bench, "chat", receiver.url)
        began = time.monotonic()
        tell(bench)
        assert time.monotonic() - began < 15, "the silent one would take 20 s"
    assert len(receiver.got) == 1
    trouble = {line["address"]: line["trouble"] for line in lines(bench, "alert not sent")}
    assert trouble["file:silent"] == "no answer within 1 s"
    assert "error" in trouble["file:closed"]
    everything = json.dumps([line.details for line in bench.journal.audit("flights")], default=str)
    assert "did not reach file:closed" in logged.text
    assert SECRET not in everything + logged.text


def test_the_server_s_refusal_is_written_down_once_and_mended_by_the_sweep(
    tmp_path: Path, receiver: Receiver
) -> None:
    bench = bench_with(tmp_path, critical=["file:chat"], retry_for_s=600)
    clock: Any = bench.clock
    write_secret(bench, "chat", receiver.url)
    receiver.status = 500
    tell(bench)
    assert send_again(bench) == []  # too young: it may still be under way
    assert len(receiver.got) == 1
    for _ in range(2):
        clock.now += 120
        assert send_again(bench) == []
    assert len(receiver.got) == 3
    assert "error=500" in lines(bench, "alert not sent")[0]["trouble"]
    assert len(lines(bench, "alert not sent")) == 1
    receiver.status = 200
    clock.now += 120
    assert send_again(bench) == ["flights: sent 'all is lost' again to file:chat"]
    clock.now += 120
    assert send_again(bench) == []
    assert len(receiver.got) == 4


def test_what_did_not_arrive_for_too_long_is_let_go(tmp_path: Path, receiver: Receiver) -> None:
    bench = bench_with(tmp_path, critical=["file:chat"], retry_for_s=600)
    clock: Any = bench.clock
    tell(bench)
    assert "names no URL" in lines(bench, "alert not sent")[0]["trouble"]
    write_secret(bench, "chat", receiver.url)
    clock.now += 601
    assert send_again(bench) == []
    assert receiver.got == []


def test_a_secret_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    bench = bench_with(tmp_path)
    write_secret(bench, "chat", "json://x", mode=0o644)
    with pytest.raises(SetupError, match="can be read by other users"):
        urls_of(bench.settings, "file:chat")


def test_sending_from_beside_returns_at_once_although_nobody_answers(tmp_path: Path, silent: str) -> None:
    bench = bench_with(tmp_path, critical=["file:silent"], timeout_s=3)
    write_secret(bench, "silent", silent)
    settings = Settings(state_dir=tmp_path, prefect_api_url="http://127.0.0.1:9/api")
    bench.messenger = Messenger(settings, bench.clock)
    before = set(threading.enumerate())
    tell(bench)
    assert lines(bench, "alert not sent") == [], "it did not wait for the answer"
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert len(lines(bench, "alert not sent")) == 1
