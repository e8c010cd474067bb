"""How long a bad version still answers, from the decision on; under open-loop traffic."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.gateway.subjects import bench_settings, free_port, start_full_gateway, started
from serving.endpoint import Route, Slot
from serving.gateway.plane import RoutePlane

_RATE_PER_S = 300
_SERVICE_MS = 10
_BETWEEN_S = 0.25
_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Rollback:
    """One rollback, in milliseconds from the decision.

    `answered_ms`: the gateway confirmed on every worker. `last_ms`: the last answer of the candidate
    reached a client (0: none after the decision). `late`: requests that were sent after the
    confirmation and still went to the candidate.
    """

    answered_ms: float
    last_ms: float
    late: int


@dataclass(frozen=True, slots=True)
class Result:
    """All rollbacks, and what the clients saw of them."""

    rollbacks: list[Rollback]
    requests: int
    failures: int


def measure_rollbacks(folder: Path, count: int) -> Result:
    """Roll a 50% canary back `count` times, with traffic from a process of its own."""
    with ExitStack() as stack:
        settings = bench_settings(folder)
        ports = {slot: free_port() for slot in Slot}
        for slot, version in ((Slot.BLUE, "1"), (Slot.GREEN, "2")):
            command = [sys.executable, "-m", "benchmarks.gateway.upstream", str(ports[slot]), version]
            started(stack, [*command, str(_SERVICE_MS)], ports[slot])
        _, key = start_full_gateway(stack, settings, ports, concurrency=64)
        plane = RoutePlane(settings)
        context = get_context("spawn")
        here, there = context.Pipe()
        client = context.Process(target=_traffic, args=(there, settings.gateway_port, key), daemon=True)
        client.start()
        time.sleep(2)
        decisions = [_roll_back(plane, 2 * number) for number in range(1, count + 1)]
        here.send("stop")
        samples: list[tuple[float, float, int, str]] = json.loads(here.recv())
        client.join(10)
    return Result(
        [_measured(begun, ended, samples) for begun, ended in decisions],
        len(samples),
        sum(status != 200 for _, _, status, _ in samples),
    )


def _roll_back(plane: RoutePlane, generation: int) -> tuple[float, float]:
    """A canary, then back: the times of the decision and of the confirmation."""
    route = Route("flights", generation, Slot.BLUE, "1", other_version="2", salt=f"s{generation}")
    plane.apply(dataclasses.replace(route, share_bp=5000, until=time.time() + 60), before_new=lambda _: None)
    time.sleep(_BETWEEN_S)
    begun = time.monotonic()
    plane.apply(dataclasses.replace(route, generation=generation + 1), before_new=lambda _: None)
    ended = time.monotonic()
    time.sleep(_BETWEEN_S)
    return begun, ended


def _measured(begun: float, ended: float, samples: list[tuple[float, float, int, str]]) -> Rollback:
    window = [one for one in samples if begun < one[1] < ended + _BETWEEN_S and one[3] == "2"]
    return Rollback(
        answered_ms=(ended - begun) * 1000,
        last_ms=max(((done - begun) * 1000 for _, done, _, _ in window), default=0.0),
        late=sum(sent > ended for sent, _, _, _ in window),
    )


def _traffic(there: Connection, port: int, key: str) -> None:
    """Open loop at a fixed rate: a slow answer does not slow the requests that come after it."""
    there.send(json.dumps(asyncio.run(_send_all(there, port, key))))


async def _send_all(there: Connection, port: int, key: str) -> list[tuple[float, float, int, str]]:
    import aiohttp

    samples: list[tuple[float, float, int, str]] = []
    pending: set[asyncio.Task[None]] = set()
    url = f"http://127.0.0.1:{port}/flights/invocations"

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        sent = time.monotonic()
        try:
            async with session.post(url, data=b"{}", headers={"x-user-id": f"u{number % 20_000}"}) as answer:
                await answer.read()
                status, version = answer.status, answer.headers.get("x-interlock-version", "")
        except aiohttp.ClientError:
            status, version = 0, ""
        samples.append((sent, time.monotonic(), status, version))

    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, headers={"x-api-key": key}) as session:
        begun, number = time.monotonic(), 0
        while not there.poll():
            due = begun + number / _RATE_PER_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(one(session, number))
            pending.add(task)
            task.add_done_callback(pending.discard)
            number += 1
        await asyncio.gather(*pending)
    return samples
