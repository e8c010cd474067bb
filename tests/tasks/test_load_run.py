"""The load generator for real: a Locust process against a server of ours with a known answer time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from configs.load_test import LoadTest
from configs.section import LatencyBudget
from evals.load import measure
from tasks.load_run import Target, locust_sender

pytestmark = pytest.mark.slow
SERVICE_S = 0.05


class Answering(ThreadingHTTPServer):
    """Answers after a while, any number at once; keeps what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, dict[str, object]]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Answering)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append((self.path, self.headers["x-api-key"], body))
        time.sleep(SERVICE_S)
        status = 503 if body["n"] == 3 else 200
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering() as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()


def test_every_request_is_sent_once_in_turn_and_its_answer_is_written_down(server: Answering) -> None:
    load = LoadTest(rate_per_s=20, duration_s=3, warm_up_s=0)
    target = Target(
        f"http://127.0.0.1:{server.server_port}/sums-staging", "/invocations", "a key", timeout_s=20
    )
    bodies = [json.dumps({"n": n}) for n in range(4)]
    arrivals = locust_sender(target, bodies, load)(20)
    assert len(arrivals.due) == len(server.seen) == 60
    assert {(path, key) for path, key, _ in server.seen} == {("/sums-staging/invocations", "a key")}
    assert np.bincount([int(str(body["n"])) for *_, body in server.seen]).tolist() == [15, 15, 15, 15]
    assert arrivals.due.tolist() == pytest.approx([index / 20 for index in range(60)])
    assert np.all(arrivals.sent >= arrivals.due - 1e-3)
    assert np.all(arrivals.done - arrivals.sent >= SERVICE_S * 0.9)
    assert [arrivals.status[index] for index in (2, 3, 4, 7)] == [200, 503, 200, 503]
    step = measure(arrivals, rate=20, policy=load, budget=LatencyBudget(p50=1))
    assert step.failed == 15
    assert step.p50 >= SERVICE_S * 900
