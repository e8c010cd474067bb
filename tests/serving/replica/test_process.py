"""The replica as a real process: its life, its faults, and what it leaves behind."""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.capture.spool import read_exchanges
from tests.serving.replica.conftest import ROOT, Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JSON = {"content-type": "application/json"}
START_S_MAX = 240


@dataclass
class Running:
    """One replica process under test."""

    process: subprocess.Popen[bytes]
    spec: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.spec['port']}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=JSON, timeout=30, trust_env=False)

    def wait_until_ready(self) -> set[int]:
        """Returns the statuses of /health that were seen on the way."""
        seen: set[int] = set()
        deadline = time.monotonic() + START_S_MAX
        with self.client() as client:
            while 200 not in seen:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                assert time.monotonic() < deadline, self.log.read_text()[-2000:]
                with contextlib.suppress(httpx.TransportError):
                    seen.add(client.get("/health").status_code)
                time.sleep(0.02)
        return seen


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Generator[Start]:
    """Starts replicas of test models; every one is gone afterwards."""
    folder = tmp_path_factory.mktemp("replicas")
    started: list[Running] = []

    def run(name: str, **more: Any) -> Running:
        home = folder / str(len(started))
        home.mkdir()
        spec: dict[str, Any] = {
            "endpoint": name,
            "slot": "blue",
            "version": "1",
            "uri": registry.uris.get(name, f"models:/{name}/1"),
            "port": free_port(),
            "mlflow_tracking_uri": registry.tracking_uri,
            "model_cache_dir": str(folder / "models"),
            "capture": {"captures_dir": str(home / "captures")},
            "spool": {"dir": str(home / "spool")},
            "lame_duck_s": 0.3,
            "drain_s": 10,
        } | more
        (home / "spec.json").write_text(json.dumps(spec))
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.replica", str(home / "spec.json")], cwd=ROOT, stderr=log
            )
        started.append(Running(process, spec, home / "log"))
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="module")
def strange(start: Start) -> Running:
    """Joins requests, has one worker, and little patience."""
    running = start("strange", concurrency=1, batch_max_rows=64, request_timeout_s=3.0, max_body_bytes=20_000)
    running.wait_until_ready()
    return running


@pytest.fixture(scope="module")
def flights(start: Start) -> Running:
    running = start("flights")
    seen = running.wait_until_ready()
    assert 503 in seen, "it listens, and says so, while it loads"
    return running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def row(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"x": 1.5, "n": 2, "mode": "ok"} | changes]}


def eventually(condition: Callable[[], bool], wait_s: float = 60) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "did not become true in time"
        time.sleep(0.02)


def metric(text: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


def test_every_status(strange: Running) -> None:
    with strange.client() as client:
        assert client.post("/invocations", json=row()).json() == {"predictions": [5.0]}
        nan = client.post("/invocations", json=row(mode="nan"))
        assert (nan.status_code, nan.text) == (200, '{"predictions":[null]}')
        for body in (row(mode="raise"), row(mode="set"), row(mode="exit")):
            fault = client.post("/invocations", json=body, headers={"x-request-id": "find-me"})
            assert (fault.status_code, fault.json()["error"]) == (500, "model_fault")
            assert "tattletale" not in fault.text
        assert "find-me" in strange.log.read_text()
        bad = client.post("/invocations", json=row(n=1.5))
        assert (bad.status_code, bad.json()["column"]) == (400, "n")
        assert client.post("/invocations", content=b"{").status_code == 400
        assert (
            client.post("/invocations", content=b"{}", headers={"content-type": "text/html"}).status_code
            == 415
        )
        assert client.post("/invocations", content=b"x" * 20_001).status_code == 413
        assert client.post("/invocations", json=row(mode="sleep3.5")).status_code == 504
        # The worker is still in there for a while.
        eventually(lambda: client.post("/invocations", json=row()).status_code == 200)


def test_waiting_requests_are_joined_and_a_bad_one_fails_alone(strange: Running) -> None:
    bodies = [row(x=float(n), mode="raise" if n == 7 else "ok") for n in range(16)]
    with strange.client() as client, concurrent.futures.ThreadPoolExecutor(17) as threads:
        front = threads.submit(client.post, "/invocations", json=row(mode="sleep0.3"))
        time.sleep(0.1)
        replies = list(threads.map(lambda body: client.post("/invocations", json=body), bodies))
        assert front.result().status_code == 200
        for n, reply in enumerate(replies):
            if n == 7:
                assert reply.status_code == 500
            else:
                assert reply.json() == {"predictions": [n * 2.0 + 2]}
        replies = list(
            threads.map(
                lambda body: client.post("/invocations", json=body), [row(mode="sleep0.1"), *[row()] * 15]
            )
        )
        assert {reply.status_code for reply in replies} == {200}
        assert metric(client.get("/metrics").text, "interlock_replica_joined_model_calls") >= 1


numbers = st.none() | st.booleans() | st.integers() | st.floats(-1e30, 1e30) | st.text(max_size=5)
json_values = st.recursive(
    numbers,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["delay", "hour", "carrier", "distance", "columns", "data"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)
SOUND = {"delay": 1.0, "hour": 3, "carrier": "AA", "distance": 500.0}
near_misses = st.builds(
    lambda changes, left_out: {name: value for name, value in (SOUND | changes).items() if name != left_out},
    st.dictionaries(st.sampled_from(sorted(SOUND)), numbers, max_size=2),
    st.sampled_from([None] * 6 + sorted(SOUND)),
)
bodies = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda form, value: json.dumps({form: value}).encode(),
        st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params", "x"]),
        json_values,
    ),
    st.builds(
        lambda form, rows: json.dumps({form: rows}).encode(),
        st.sampled_from(["dataframe_records", "instances", "inputs"]),
        st.lists(near_misses, max_size=3),
    ),
)
content_types = st.sampled_from(
    ["application/json"] * 6 + ["text/csv", "text/plain", "application/json; charset=x"]
)


def test_fuzzing_finds_no_500_no_hang_and_no_lost_process(flights: Running) -> None:
    statuses: dict[int, int] = {}
    with flights.client() as client:

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(body=bodies, content_type=content_types)
        def fuzz(body: bytes, content_type: str) -> None:
            reply = client.post(
                "/invocations", content=body, headers={"content-type": content_type}, timeout=10
            )
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            assert reply.status_code in (200, 400, 415), (reply.status_code, body, reply.text)
            document = json.loads(reply.content)
            assert "predictions" in document if reply.status_code == 200 else document["message"]

        fuzz()
        assert client.get("/health").status_code == 200
    assert flights.process.poll() is None
    assert set(statuses) == {200, 400, 415}, "the fuzz reached every kind of answer"


def test_sigterm_finishes_what_is_in_flight(start: Start) -> None:
    running = start("strange", concurrency=8, version="9", drain_s=60, lame_duck_s=3)
    running.wait_until_ready()
    _, cursor = read_exchanges(Path(running.spec["spool"]["dir"]), None, 1)
    with running.client() as client, concurrent.futures.ThreadPoolExecutor(4) as threads:
        waiting = [
            threads.submit(
                client.post, "/invocations", json=row(mode="sleep3"), headers={"x-request-id": f"r{n}"}
            )
            for n in range(4)
        ]
        eventually(lambda: metric(client.get("/metrics").text, "interlock_replica_in_flight") == 4)
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: client.get("/health").status_code == 503)
        assert client.post("/invocations", json=row()).status_code == 200, "still answers those who come"
        assert [future.result().status_code for future in waiting] == [200] * 4
    assert running.process.wait(timeout=60) == 0
    exchanges, _ = read_exchanges(Path(running.spec["spool"]["dir"]), cursor, 100)
    assert {exchange.request_id for exchange in exchanges} == {"r0", "r1", "r2", "r3"}
    assert {exchange.version for exchange in exchanges} == {"9"}


def test_a_kill_loses_at_most_a_second(start: Start) -> None:
    running = start("strange")
    running.wait_until_ready()
    spool = Path(running.spec["spool"]["dir"])
    _, cursor = read_exchanges(spool, None, 1)
    answered: dict[str, float] = {}
    with running.client() as client:
        began = time.monotonic()
        while time.monotonic() - began < 2.0:
            name = f"r{len(answered)}"
            reply = client.post("/invocations", json=row(), headers={"x-request-id": name})
            assert reply.status_code == 200
            answered[name] = time.monotonic()
        os.kill(running.process.pid, signal.SIGKILL)
        killed = time.monotonic()
    exchanges, _ = read_exchanges(spool, cursor, 100_000)
    kept = {exchange.request_id for exchange in exchanges}
    assert {name for name, when in answered.items() if when < killed - 1.0} <= kept
    assert kept <= set(answered)


def test_starts_from_its_copy_while_the_registry_is_away(
    registry: Registry, start: Start, flights: Running
) -> None:
    # Any other registry of which there is a note would do: this one is asked while its file is gone.
    database = registry.folder / "mlflow.db"
    away = database.with_suffix(".away")
    down = "http://127.0.0.1:9"
    uri = flights.spec["uri"]
    cache = Path(flights.spec["model_cache_dir"])
    notes = [path for path in cache.glob(".*.json") if json.loads(path.read_text())["uri"] == uri]
    assert len(notes) == 1
    from serving.replica.loading import _note_path

    _note_path(cache, down, uri).write_text(notes[0].read_text())
    database.rename(away)
    try:
        again = start("flights", mlflow_tracking_uri=down)
        never_seen = start("strange", mlflow_tracking_uri=down)
        again.wait_until_ready()
        assert "does not answer" in again.log.read_text()
        assert never_seen.process.wait(timeout=START_S_MAX) == 3
        assert "start MLflow" in never_seen.log.read_text()
    finally:
        away.rename(database)


def test_says_why_it_does_not_start(start: Start, tmp_path: Path) -> None:
    unknown = start("nowhere")
    broken = tmp_path / "spec.json"
    broken.write_text('{"endpoint": "flights", "colour": "red"}')
    done = subprocess.run(
        [sys.executable, "-m", "serving.replica", str(broken)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "colour" in done.stderr
    assert unknown.process.wait(timeout=START_S_MAX) == 4
    assert "no such version" in unknown.log.read_text()
