"""The receiver as it really runs: its own process, a real socket, a Prefect that comes and goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.settings import Settings
from serving.secret_files import Secret, read_or_create
from tests.configs.policies import VALID
from tests.serving.hook.deliveries import alias_event, headers
from tests.serving.stack.conftest import free_ports

pytestmark = pytest.mark.slow


class FakePrefect(ThreadingHTTPServer):
    """Takes events on a real port; `answer` is the status that it gives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = 204
        self.events: list[dict[str, Any]] = []
        self.credentials: list[str | None] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, FakePrefect)
        body = self.rfile.read(int(self.headers["content-length"]))
        server.credentials.append(self.headers["authorization"])
        if server.answer < 300:
            server.events += json.loads(body)
        self.send_response(server.answer)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def prefect() -> Generator[FakePrefect]:
    server = FakePrefect()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def hook(prefect: FakePrefect, tmp_path_factory: pytest.TempPathFactory) -> Generator[Settings]:
    """A running receiver's settings."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / "policies").mkdir()
    (folder / "policies" / "flights.yaml").write_text(VALID)
    settings = Settings(
        state_dir=folder / "state",
        policy_dir=folder / "policies",
        hook_port=free_ports(1)[0],
        prefect_api_url=f"http://127.0.0.1:{prefect.server_port}/api",
    )
    environment = {**os.environ, **settings.as_environment(), "PREFECT_API_AUTH_STRING": "admin:pass"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.hook"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 60
        while not _is_up(settings):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield settings
        assert process.poll() is None, "the receiver died: " + (folder / "log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)


def _is_up(settings: Settings) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((settings.host, settings.hook_port)) == 0


def deliver(hook: Settings, body: bytes, **options: Any) -> httpx.Response:
    secret = read_or_create(hook, Secret.WEBHOOK).encode()
    return httpx.post(
        hook.hook_url,
        content=body,
        headers=headers(body, secret=secret, at=time.time(), **options),
        timeout=60,
    )


def test_a_delivery_reaches_prefect_with_credentials(hook: Settings, prefect: FakePrefect) -> None:
    assert deliver(hook, alias_event(version="7"), delivery_id="p-1").json()["started"] == ["flights"]
    assert prefect.events[-1]["payload"]["version"] == 7
    assert prefect.credentials[-1] == "Basic YWRtaW46cGFzcw=="
    assert deliver(hook, alias_event(version="7"), delivery_id="p-1").json()["status"] == "duplicate"


def test_mlflows_own_retries_bring_it_through(hook: Settings, prefect: FakePrefect) -> None:
    before = len(prefect.events)
    prefect.answer = 503
    assert deliver(hook, alias_event(), delivery_id="p-2").status_code == 503
    prefect.answer = 204
    assert deliver(hook, alias_event(), delivery_id="p-2").status_code == 200
    assert len(prefect.events) == before + 1


def test_a_stopping_client_and_raw_garbage_hurt_nobody(hook: Settings) -> None:
    pieces = [
        b"POST /registry HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf",
        b"\x16\x03\x01 this is TLS, is it not?\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /registry HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /registry HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    ]
    for piece in pieces:
        with socket.create_connection((hook.host, hook.hook_port), timeout=60) as client:
            client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(65_536)
            assert b" 500 " not in answer.partition(b"\r\n")[0]
    assert httpx.get(f"http://{hook.host}:{hook.hook_port}/health", timeout=60).status_code == 200


def test_waiting_connections_do_not_block_a_delivery(hook: Settings) -> None:
    idle = [socket.create_connection((hook.host, hook.hook_port), timeout=5) for _ in range(50)]
    try:
        for client in idle:
            client.sendall(b"POST /registry HTTP/1.1\r\nhost: x\r\n")
        assert deliver(hook, alias_event(alias="other")).status_code == 200
    finally:
        for client in idle:
            client.close()


def test_secrets_and_state_are_private(hook: Settings) -> None:
    path: Path = hook.secrets_dir / Secret.WEBHOOK.value
    assert path.stat().st_mode & 0o777 == 0o600
