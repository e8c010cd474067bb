"""Live traffic: travellers asking about real flights, in the flights' order.

    python -m examples.flights.traffic --url URL --rows live.parquet --key-file KEY --out DIR

Open loop: arrivals follow a clock (a Poisson process of *visits*), never the answers, so a slow
server meets the same load as a fast one and its latency is not hidden. A visit is one traveller
who asks about one flight, or opens a board and asks about several at the same moment; so even a
small share of the travellers brings several requests in flight at once, as real clients do.

Written to `--out`: `requests.jsonl`, one line a request in the order of completion, and
`traffic.json`, rolling counters, replaced every half second. Latency counts from the moment at
which a request was due. SIGTERM or SIGINT ends the arrivals, waits for what is in flight, and
writes the last lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from bisect import bisect
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from examples.flights.data import FEATURES

BOARD_SIZES = ((1, 0.50), (2, 0.10), (3, 0.10), (4, 0.15), (5, 0.15))
"""Flights asked about in one visit, with probabilities."""

IN_FLIGHT_MAX = 2_000
"""With so many unanswered, further requests count as failed: the machine is lost, not slow."""

TIMEOUT_S = 30.0
_FLUSH_S = 0.5
_RECENT_S = 5.0
_DRAIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What the traffic looks like. `rate` is requests a second on average; the same seed repeats it."""

    url: str
    rows: Path
    out: Path
    api_key: str = ""
    rate: float = 150.0
    users: int = 60_000
    skew: float = 0.5
    seed: int = 2013
    seconds: float | None = None
    start_row: int = 0
    with_parent: bool = False


@dataclass(slots=True)
class Counters:
    """What happened so far; `recent` holds (time, latency in ms) of the last seconds."""

    since: float
    sent: int = 0
    answered: int = 0
    failed: int = 0
    status: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    version_failures: Counter[str] = field(default_factory=Counter)
    recent: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, record: dict[str, Any]) -> None:
        """Count one finished request."""
        status, version = record["status"], record["version"] or "none"
        bad = status != 200
        self.answered += status != 0
        self.failed += bad
        self.status[str(status)] += 1
        self.versions[version] += 1
        if bad:
            self.version_failures[version] += 1
        if record["error"]:
            self.errors[record["error"]] += 1
        self.recent.append((record["time"] + record["ms"] / 1000, record["ms"]))

    def as_dict(self, now: float) -> dict[str, Any]:
        """Plain values; rate and quantiles are of the last seconds."""
        while self.recent and self.recent[0][0] < now - _RECENT_S:
            self.recent.popleft()
        latencies = sorted(ms for _, ms in self.recent)

        def quantile(q: float) -> float | None:
            return (
                round(latencies[min(int(q * len(latencies)), len(latencies) - 1)], 2) if latencies else None
            )

        return {
            "time": now,
            "seconds": round(now - self.since, 2),
            "sent": self.sent,
            "answered": self.answered,
            "failed": self.failed,
            "in_flight": self.sent - sum(self.status.values()),
            "per_second": round(len(latencies) / min(_RECENT_S, max(now - self.since, 0.001)), 1),
            "p50_ms": quantile(0.5),
            "p90_ms": quantile(0.9),
            "p99_ms": quantile(0.99),
            "status": dict(self.status),
            "errors": dict(self.errors),
            "versions": dict(self.versions),
            "version_failures": dict(self.version_failures),
            "cpu_s": round(time.process_time(), 2),
            "pid": os.getpid(),
        }


def bodies(rows: Path, start_row: int = 0) -> Iterator[bytes]:
    """Requests in MLflow's `dataframe_split` form, one flight each, in order, for ever."""
    import pyarrow.parquet as parquet

    head = b'{"dataframe_split":{"columns":' + json.dumps(list(FEATURES)).encode() + b',"data":['
    skip = start_row
    while True:
        empty = True
        for batch in parquet.ParquetFile(rows).iter_batches(1024, columns=list(FEATURES)):
            if skip >= batch.num_rows:
                skip, empty = skip - batch.num_rows, False
                continue
            columns = [batch.column(name)[skip:].to_pylist() for name in FEATURES]
            skip = 0
            for row in zip(*columns, strict=True):
                empty = False
                yield head + json.dumps(row).encode() + b"]}}"
        if empty:
            raise ValueError(f"{rows} holds no flights. Next: prepare the data again")


class Visitors:
    """Who comes: a user and how many flights they ask about. Some users come far more often."""

    def __init__(self, plan: Plan) -> None:
        self._random = random.Random(plan.seed)
        self._users = list(accumulate((rank + 10) ** -plan.skew for rank in range(plan.users)))
        self._sizes = list(accumulate(weight for _, weight in BOARD_SIZES))
        mean = sum(size * weight for size, weight in BOARD_SIZES) / self._sizes[-1]
        self._visits_per_s = plan.rate / mean

    def gap_s(self) -> float:
        """Time until the next visit."""
        return self._random.expovariate(self._visits_per_s)

    def visit(self) -> tuple[str, int]:
        """A user id and the number of flights."""
        user = bisect(self._users, self._random.random() * self._users[-1])
        size = BOARD_SIZES[bisect(self._sizes, self._random.random() * self._sizes[-1])][0]
        return f"traveller-{user:05d}", size


class Traffic:
    """Sends what `Visitors` ask and keeps the record."""

    def __init__(self, plan: Plan, *, clock: Callable[[], float] = time.time) -> None:
        self._plan = plan
        self._clock = clock
        self._lines: list[str] = []
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.counters = Counters(clock())

    def stop(self) -> None:
        """End the arrivals; `run` returns once everything in flight is answered."""
        self._stop.set()

    async def run(self) -> Counters:
        """Send until stopped or until `plan.seconds` have passed."""
        import aiohttp

        plan = self._plan
        plan.out.mkdir(parents=True, exist_ok=True)
        headers = {"content-type": "application/json"} | ({"x-api-key": plan.api_key} if plan.api_key else {})
        async with aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=20),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        ) as session:
            await self.send(session)
        return self.counters

    async def send(self, session: Any) -> None:
        """All arrivals through a client's session, and the record of them."""
        writer = asyncio.create_task(self._write_now_and_then())
        try:
            await self._arrivals(session)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_DRAIN_S)
        finally:
            writer.cancel()
            self._write(stopped=True)

    async def _arrivals(self, session: Any) -> None:
        visitors, requests = Visitors(self._plan), bodies(self._plan.rows, self._plan.start_row)
        body = next(requests)  # reading the first rows takes a moment, which is no request's latency
        started = due = self._clock()
        while not self._stop.is_set():
            due += visitors.gap_s()
            if self._plan.seconds is not None and due - started > self._plan.seconds:
                return
            wait = due - self._clock()
            if wait > 0:
                # Sleeping in one piece would make SIGTERM wait; a visit is never far away, though.
                await asyncio.sleep(wait)
            elif not self.counters.sent % 64:
                await asyncio.sleep(0)
            user, size = visitors.visit()
            for _ in range(size):
                task = asyncio.create_task(self._ask(session, user, body, due))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                body = next(requests)

    async def _ask(self, session: Any, user: str, body: bytes, due: float) -> None:
        import aiohttp

        record: dict[str, Any] = {
            "time": due,
            "user": user,
            "status": 0,
            "version": "",
            "id": "",
            "error": "",
        }
        self.counters.sent += 1
        if len(self._tasks) > IN_FLIGHT_MAX:
            record["error"] = "TooManyInFlight"
        else:
            try:
                async with session.post(self._plan.url, data=body, headers={"x-user-id": user}) as response:
                    answer = await response.read()
                    record["status"] = response.status
                    record["version"] = response.headers.get("x-interlock-version", "")
                    record["id"] = response.headers.get("x-request-id", "")
                    if response.status != 200:
                        record["error"] = _kind(answer)
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                record["error"] = type(error).__name__
        record["ms"] = round((self._clock() - due) * 1000, 3)
        self.counters.add(record)
        self._lines.append(json.dumps(record))

    async def _write_now_and_then(self) -> None:
        parent = os.getppid()
        while True:
            await asyncio.sleep(_FLUSH_S)
            self._write(stopped=False)
            if self._plan.with_parent and os.getppid() != parent:
                self.stop()

    def _write(self, *, stopped: bool) -> None:
        lines, self._lines = self._lines, []
        if lines:
            with (self._plan.out / "requests.jsonl").open("a") as file:
                file.write("\n".join(lines) + "\n")
        state, draft = self._plan.out / "traffic.json", self._plan.out / "traffic.json.new"
        draft.write_text(json.dumps(self.counters.as_dict(self._clock()) | {"stopped": stopped}))
        draft.replace(state)


def _kind(answer: bytes) -> str:
    """The error's name as the gateway or the replica gave it, else nothing more than 'error'."""
    try:
        said = json.loads(answer)
        name = said.get("error") or said.get("error_code") or "error"
        return str(name.get("code", "error") if isinstance(name, dict) else name)[:80]
    except (ValueError, AttributeError):
        return "error"


async def _main(plan: Plan) -> None:
    traffic = Traffic(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, traffic.stop)
    await traffic.run()


def main() -> None:
    """Read the command line and send until told to stop."""
    parser = argparse.ArgumentParser(description="Open-loop traffic of real flights")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rows", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--key-file", type=Path, help="file with the API key (never on the command line)")
    parser.add_argument("--rate", type=float, default=150.0, help="requests a second")
    parser.add_argument("--users", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=2013)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--start-row", type=int, default=0)
    parser.add_argument("--with-parent", action="store_true", help="stop when the starting process ends")
    given = parser.parse_args()
    key = given.key_file.read_text().strip() if given.key_file else ""
    plan = Plan(
        url=given.url,
        rows=given.rows,
        out=given.out,
        api_key=key,
        rate=given.rate,
        users=given.users,
        seed=given.seed,
        seconds=given.seconds,
        start_row=given.start_row,
        with_parent=given.with_parent,
    )
    try:
        import uvloop

        uvloop.run(_main(plan))
    except ImportError:
        asyncio.run(_main(plan))


if __name__ == "__main__":
    main()
