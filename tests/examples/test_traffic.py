"""The load generator against a real little server: open loop, its rate, its record."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pandas as pd
import pytest
from aiohttp import web

from examples.flights.data import COUNTS, FEATURES, MEASURES, TEXTS
from examples.flights.traffic import Plan, Traffic, Visitors, bodies

Handler = Callable[[web.Request], Awaitable[web.Response]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    frame = pd.DataFrame(
        {name: ["JFK", "EWR", "LGA"] for name in TEXTS}
        | {name: [1, 2, 3] for name in COUNTS}
        | {name: [0.5, None, 1.5] for name in MEASURES}
    )
    path = tmp_path / "live.parquet"
    frame.to_parquet(path, index=False)
    return path


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/flights/invocations", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}/flights/invocations"
    finally:
        await runner.cleanup()


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]


def test_a_body_is_one_flight_with_nulls_where_nothing_was_measured(rows: Path) -> None:
    stream = bodies(rows, start_row=1)
    first = json.loads(next(stream))["dataframe_split"]
    assert first["columns"] == list(FEATURES)
    assert first["data"][0][: len(TEXTS)] == ["EWR"] * len(TEXTS)
    assert first["data"][0][-len(MEASURES) :] == [None] * len(MEASURES)
    assert json.loads(next(stream))["dataframe_split"]["data"][0][0] == "LGA"
    assert json.loads(next(stream))["dataframe_split"]["data"][0][0] == "JFK"  # and round again


def test_no_flights_is_an_error_not_an_endless_loop(tmp_path: Path, rows: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pd.read_parquet(rows).head(0).to_parquet(empty, index=False)
    with pytest.raises(ValueError, match="holds no flights"):
        next(bodies(empty))


def test_visitors_have_the_rate_and_a_moderate_skew(rows: Path, tmp_path: Path) -> None:
    visitors = Visitors(Plan("", rows, tmp_path, rate=150, users=60_000, seed=5))
    gaps = [visitors.gap_s() for _ in range(20_000)]
    visits = [visitors.visit() for _ in range(20_000)]
    requests_per_s = sum(size for _, size in visits) / sum(gaps)
    assert requests_per_s == pytest.approx(150, rel=0.05)
    users = Counter(user for user, _ in visits)
    assert len(users) > 10_000
    assert 5 < users.most_common(1)[0][1] < 200


def test_records_what_the_gateway_said(rows: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.headers["x-api-key"], request.headers["x-user-id"]))
        headers = {"x-interlock-version": "7", "x-request-id": f"r{len(seen)}"}
        if len(seen) % 4 == 0:
            return web.json_response({"error": "model_failed"}, status=500, headers=headers)
        return web.json_response({"predictions": [0.1]}, headers=headers)

    async def scenario() -> None:
        async with server(handler) as url:
            await Traffic(Plan(url, rows, tmp_path / "out", api_key="k1", rate=200, seconds=0.5)).run()

    asyncio.run(scenario())
    found = records(tmp_path / "out")
    assert len(found) == len(seen) > 30
    assert {key for key, _ in seen} == {"k1"}
    assert {record["version"] for record in found} == {"7"}
    failed = [record for record in found if record["status"] == 500]
    assert len(failed) == len(found) // 4
    assert {record["error"] for record in failed} == {"model_failed"}
    state = json.loads((tmp_path / "out" / "traffic.json").read_text())
    assert state["stopped"]
    assert state["sent"] == state["answered"] == len(found)
    assert state["in_flight"] == 0
    assert state["version_failures"] == {"7": len(failed)}


def test_arrivals_do_not_wait_for_answers(rows: Path, tmp_path: Path) -> None:
    """A server that answers nothing meets requests all the same, and is charged for the whole wait."""
    arrivals: list[float] = []
    enough, release = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        arrivals.append(time.time())
        if len(arrivals) == 100:
            enough.set()
        await release.wait()
        return web.json_response({"predictions": [0.1]})

    async def scenario() -> float:
        async with server(handler) as url:
            traffic = Traffic(Plan(url, rows, tmp_path / "out", rate=150))
            running = asyncio.create_task(traffic.run())
            await enough.wait()  # with nothing answered, a hundred came
            released = time.time()
            release.set()
            traffic.stop()
            await running
            return released

    released = asyncio.run(asyncio.wait_for(scenario(), 120))
    found = records(tmp_path / "out")
    assert len(found) == len(arrivals) >= 100
    # Latency counts from the moment when a request was due, so the stall is seen in full.
    assert max(record["ms"] for record in found) >= (released - arrivals[0]) * 1000


def test_a_gateway_that_is_away_is_counted_and_then_used_again(rows: Path, tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"predictions": [0.1]})

    async def scenario() -> None:
        async with server(handler) as url:
            pass
        port = int(url.split(":")[2].split("/")[0])
        traffic = Traffic(Plan(url, rows, tmp_path / "out", rate=100))
        running = asyncio.create_task(traffic.run())
        while traffic.counters.failed < 10:
            await asyncio.sleep(0.02)
        app = web.Application()
        app.router.add_post("/flights/invocations", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        while traffic.counters.status["200"] < 10:
            await asyncio.sleep(0.02)
        traffic.stop()
        await running
        await runner.cleanup()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    found = records(tmp_path / "out")
    assert {record["error"] for record in found if record["status"] == 0} == {"ClientConnectorError"}
    assert [record["status"] for record in found[:5]] == [0] * 5
    assert found[-1]["status"] == 200


@pytest.mark.slow
def test_as_a_process_it_keeps_its_rate_cheaply_and_stops_on_sigterm(rows: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "out", tmp_path / "key"
    key.write_text("secret-key\n")

    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"predictions": [0.1]})

    async def scenario() -> None:
        async with server(handler) as url:
            command = [sys.executable, "-m", "examples.flights.traffic", "--url", url, "--rows", str(rows)]
            process = subprocess.Popen([*command, "--out", str(out), "--key-file", str(key)])
            try:
                while not (out / "traffic.json").exists():
                    await asyncio.sleep(0.05)
                while json.loads((out / "traffic.json").read_text())["sent"] < 600:
                    await asyncio.sleep(0.05)
            finally:
                process.send_signal(signal.SIGTERM)
                while process.poll() is None:
                    await asyncio.sleep(0.02)
            assert process.returncode == 0

    asyncio.run(asyncio.wait_for(scenario(), 120))
    state = json.loads((out / "traffic.json").read_text())
    found = records(out)
    assert state["stopped"]
    assert state["sent"] == len(found)
    assert len(found) / (found[-1]["time"] - found[0]["time"]) == pytest.approx(150, rel=0.25)
    assert state["failed"] == 0
