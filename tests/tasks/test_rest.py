"""Calls to MLflow and Prefect: a busy moment is waited for, and nothing is done twice by accident."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serving.errors import Refused
from tasks.rest import Server, ServerUnavailable


class Scripted(ThreadingHTTPServer):
    """Answers with the statuses of `script` in turn, then 200; a status of 0 hangs up without an answer."""

    daemon_threads = True

    def __init__(self, *script: int) -> None:
        self.script = list(script)
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append(self.command)
                status = outer.script.pop(0) if outer.script else 200
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(json.dumps({"tries": len(outer.asked)}).encode())

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def api(server: Scripted, slept: list[float] | None = None) -> Server:
    sleep = (lambda _: None) if slept is None else slept.append
    return Server("Prefect", f"http://127.0.0.1:{server.server_address[1]}", {}, sleep=sleep)


@pytest.mark.parametrize("trouble", [503, 502, 429, 0])
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_a_busy_moment_is_waited_for(scripted: Scripted, method: str, trouble: int) -> None:
    """Prefect answers 503 while its SQLite is locked."""
    scripted.script = [trouble, trouble]
    slept: list[float] = []
    assert api(scripted, slept).call(method, "/x") == {"tries": 3}
    assert slept == [0.2, 0.5]


@pytest.mark.parametrize("trouble", [503, 502, 0])
def test_a_post_is_repeated_only_where_the_caller_says_that_it_may_be(
    scripted: Scripted, trouble: int
) -> None:
    scripted.script = [trouble]
    with pytest.raises(ServerUnavailable):
        api(scripted).call("POST", "/x", {})
    assert scripted.asked == ["POST"]
    scripted.script = [trouble]
    assert api(scripted).call("POST", "/x", {}, repeatable=True) == {"tries": 3}


def test_too_many_requests_never_had_an_effect(scripted: Scripted) -> None:
    scripted.script = [429]
    assert api(scripted).call("POST", "/x", {}) == {"tries": 2}


@pytest.mark.parametrize(("asked", "pauses_s"), [("1", [1.0]), ("60", [2.0]), ("soon", [0.2])])
def test_the_server_may_ask_for_a_longer_pause(scripted: Scripted, asked: str, pauses_s: list[float]) -> None:
    scripted.script, scripted.headers = [503], {"Retry-After": asked}
    slept: list[float] = []
    api(scripted, slept).call("GET", "/x")
    assert slept == pauses_s


def test_it_gives_up_and_says_so(scripted: Scripted) -> None:
    scripted.script = [503] * 9
    with pytest.raises(ServerUnavailable, match="Prefect answered 503 to /x"):
        api(scripted).call("GET", "/x")
    assert len(scripted.asked) == 4


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_a_refusal_is_final(scripted: Scripted, status: int) -> None:
    scripted.script = [status]
    with pytest.raises(Refused, match=str(status)):
        api(scripted).call("GET", "/x")
    assert len(scripted.asked) == 1


def test_a_fault_of_the_server_is_not_repeated(scripted: Scripted) -> None:
    scripted.script = [500]
    with pytest.raises(ServerUnavailable):
        api(scripted).call("GET", "/x")
    assert len(scripted.asked) == 1


def test_a_server_that_comes_back_is_found_even_by_a_post() -> None:
    """Without a connection nothing can have happened."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        slept: list[float] = []
        with pytest.raises(ServerUnavailable, match="does not answer"):
            Server("MLflow", f"http://127.0.0.1:{port}", {}, sleep=slept.append).call("POST", "/x", {})
    assert slept == [0.2, 0.5, 1.0]


def test_a_patient_caller_waits_half_a_minute_and_repeats_a_time_out() -> None:
    """`interlock up` on a busy machine: Prefect listens long before it answers in time."""
    slept: list[float] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        server = Server(
            "Prefect", f"http://127.0.0.1:{silent.getsockname()[1]}", {}, patient=True, sleep=slept.append
        )
        server._client.timeout = 0.05
        with pytest.raises(ServerUnavailable, match="ReadTimeout"):
            server.call("GET", "/x")
        assert len(slept) == 7
        assert sum(slept) > 30
        slept.clear()
        with pytest.raises(ServerUnavailable):
            server.call("POST", "/x", {})
        assert slept == [], "it may have had its effect"
