"""The shadow's replay client: live requests, asked again of the candidate, off the request path.

    replayer = Replayer(HttpAsker({Side.CANDIDATE: [...], Side.CHAMPION: [...]}, timeout_s=5), ...)
    exchanges, cursor = endpoint.exchanges(cursor, limit=500)
    batch = replayer.run_once(exchanges, budget_s=2.0)

Outputs and errors are compared with what the champion answered when it was live. Latency is not:
the live answer was given under other conditions. So a random share of the requests is asked of
both versions, one right after the other, in random order; only those pairs compare latencies.

Where the live traffic is more than the rate allows, a uniform random subset is replayed (never
simply the oldest), so that the lag stays bounded and the pairs stay representative. Time, sleep
and randomness are arguments. Memory is bounded by the batch that is handed in.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol, Self

from serving.endpoint import Endpoint, Exchange, Reply, Slot

if TYPE_CHECKING:
    import aiohttp

REPLAY_HEADERS = {"x-interlock-replay": "1"}
"""Marks a copy: replicas neither spool it nor count it as live traffic."""

_PAUSE_POLL_S = 0.25


class Side(StrEnum):
    """The two versions that a shadow compares."""

    CHAMPION = "champion"
    CANDIDATE = "candidate"


class Asker(Protocol):
    """Asks one side one request. Whatever goes wrong is a reply: status 0 means that nothing came."""

    async def ask(self, side: Side, exchange: Exchange) -> Reply:
        """Send the exchange's request, unchanged."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """One live exchange, and what the candidate answers to the same bytes.

    `champion_again` is set on the random share that was asked of both: only then may
    `candidate.elapsed_ms` be compared, with `champion_again.elapsed_ms`. Milliseconds.
    """

    exchange: Exchange
    candidate: Reply
    champion_again: Reply | None = None
    candidate_first: bool = True

    @property
    def request_id(self) -> str:
        """What joins everything."""
        return self.exchange.request_id

    @property
    def champion_status(self) -> int:
        """As it was answered live."""
        return self.exchange.status

    @property
    def champion_body(self) -> bytes:
        """As it was answered live."""
        return self.exchange.response


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of the exchanges that were handed in.

    `seen` is how many there were, `unsent` those that neither the rate nor a pause left time for.
    `lag_s` is the age of the newest exchange that was replayed, when it was.
    """

    pairs: list[Pair]
    seen: int
    unsent: int
    paused_s: float
    lag_s: float | None

    @property
    def coverage(self) -> float:
        """The fraction of the exchanges that was replayed; 1 where there were none."""
        return len(self.pairs) / self.seen if self.seen else 1.0


@dataclass(slots=True)
class Totals:
    """All batches of one replayer."""

    seen: int = 0
    replayed: int = 0
    unsent: int = 0
    paused_s: float = 0.0

    @property
    def coverage(self) -> float:
        """The fraction of all exchanges that was replayed."""
        return self.replayed / self.seen if self.seen else 1.0


class Replayer:
    """Replays batches with bounded concurrency and rate. One at a time, from one thread.

    `both_share` of the requests is asked of both sides. `must_pause` is asked before each request
    (it says whether the champion's p95 has risen, say); while it says yes, nothing is sent.
    """

    def __init__(
        self,
        asker: Asker,
        *,
        concurrency: int = 2,
        rate_per_s: float = 50.0,
        both_share: float = 0.2,
        must_pause: Callable[[], bool] = lambda: False,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.totals = Totals()
        self._asker = asker
        self._concurrency = concurrency
        self._rate_per_s = rate_per_s
        self._both_share = both_share
        self._must_pause = must_pause
        self._rng = rng or random.Random()  # noqa: S311 - a sample, not a secret
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._next_send = -math.inf
        self._runner: asyncio.Runner | None = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let connections go. Safe to repeat."""
        if self._runner is not None:
            self._runner.run(self._asker.close())
            self._runner.close()
            self._runner = None

    def run_once(self, exchanges: Sequence[Exchange], *, budget_s: float | None = None) -> Batch:
        """Replay a batch and wait for its answers. Not for use inside a running event loop.

        With `budget_s`, as many are picked as the rate allows in that time, uniformly at random,
        and nothing more is sent once it is over; without, all of them, however long it takes.
        """
        if self._runner is None:
            raise RuntimeError("This replayer is closed. Next: make a new one.")
        return self._runner.run(self.run(exchanges, budget_s=budget_s))

    async def run(self, exchanges: Sequence[Exchange], *, budget_s: float | None = None) -> Batch:
        """`run_once`, inside an event loop."""
        picked = self._pick(exchanges, budget_s)
        began = self._clock()
        deadline = math.inf if budget_s is None else began + budget_s
        work = iter(picked)
        pairs: list[Pair | None] = []
        pause = _Pause()
        lags: list[float] = []

        async def send_in_turn() -> None:
            for exchange in work:  # one iterator for all workers: each takes the next
                place = len(pairs)
                pairs.append(None)
                if not await self._may_send(deadline, pause):
                    return
                lags.append(self._wall_clock() - exchange.time)
                pairs[place] = await self._pair(exchange)

        await asyncio.gather(*(send_in_turn() for _ in range(min(self._concurrency, len(picked)))))
        done = [pair for pair in pairs if pair is not None]
        lag_s = min(lags) if lags else None
        batch = Batch(done, len(exchanges), len(exchanges) - len(done), pause.total_s, lag_s)
        self.totals.seen += batch.seen
        self.totals.replayed += len(done)
        self.totals.unsent += batch.unsent
        self.totals.paused_s += batch.paused_s
        return batch

    def _pick(self, exchanges: Sequence[Exchange], budget_s: float | None) -> list[Exchange]:
        """At most what the rate allows, in the order of arrival."""
        if budget_s is None or len(exchanges) <= (most := max(1, int(self._rate_per_s * budget_s))):
            return list(exchanges)
        kept = sorted(self._rng.sample(range(len(exchanges)), most))
        return [exchanges[i] for i in kept]

    async def _may_send(self, deadline: float, pause: _Pause) -> bool:
        """Wait for the pause to end and for this request's turn; False where time runs out first."""
        while True:
            while self._must_pause():
                before = self._clock()
                if before >= deadline:
                    return False
                await self._sleep(_PAUSE_POLL_S)
                pause.add(before, self._clock())
            turn = max(self._clock(), self._next_send)
            if turn > deadline:
                return False
            self._next_send = turn + 1 / self._rate_per_s
            if turn <= self._clock():
                return True
            await self._sleep(turn - self._clock())
            if not self._must_pause():  # it may have begun while we waited for our turn
                return True

    async def _pair(self, exchange: Exchange) -> Pair:
        if self._rng.random() >= self._both_share:
            return Pair(exchange, await self._asker.ask(Side.CANDIDATE, exchange))
        candidate_first = self._rng.random() < 0.5
        order = (Side.CANDIDATE, Side.CHAMPION) if candidate_first else (Side.CHAMPION, Side.CANDIDATE)
        replies = {side: await self._asker.ask(side, exchange) for side in order}
        return Pair(exchange, replies[Side.CANDIDATE], replies[Side.CHAMPION], candidate_first)


class _Pause:
    """The time in which nothing was sent, counted once although several workers wait."""

    def __init__(self) -> None:
        self.total_s = 0.0
        self._until = -math.inf

    def add(self, start: float, end: float) -> None:
        """One wait of one worker, on the replayer's clock."""
        self.total_s += max(0.0, end - max(start, self._until))
        self._until = max(self._until, end)


class EndpointAsker:
    """Asks through `Endpoint.invoke`: works on every platform. The calls run in threads."""

    def __init__(
        self, endpoint: Endpoint, sides: Mapping[Side, Slot], *, timeout_s: float, threads: int = 16
    ) -> None:
        self._endpoint = endpoint
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="replay")
        self._sides = sides
        self._timeout_s = timeout_s

    async def ask(self, side: Side, exchange: Exchange) -> Reply:
        """One call of `invoke`."""
        invoke = partial(
            self._endpoint.invoke,
            self._sides[side],
            exchange.path,
            exchange.request,
            content_type=exchange.content_type,
            timeout_s=self._timeout_s,
        )
        return await asyncio.get_running_loop().run_in_executor(self._threads, invoke)

    async def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False)


class HttpAsker:
    """Asks the replicas' addresses in turn, straight, over kept connections."""

    def __init__(self, addresses: Mapping[Side, Sequence[str]], *, timeout_s: float) -> None:
        if not addresses.get(Side.CANDIDATE):
            raise ValueError("No address of the candidate. Next: deploy it, then replay.")
        self._turns = {side: itertools.cycle(known) for side, known in addresses.items() if known}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, side: Side, exchange: Exchange) -> Reply:
        """One POST. `addresses` are `host:port`."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        url = f"http://{next(self._turns[side])}{exchange.path}"
        headers = REPLAY_HEADERS | {
            "content-type": exchange.content_type,
            "x-request-id": exchange.request_id,
        }
        started = time.perf_counter()
        try:
            async with self._session.post(url, data=exchange.request, headers=headers) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Reply(0, b"", (time.perf_counter() - started) * 1000)
        elapsed_ms = (time.perf_counter() - started) * 1000
        return Reply(response.status, body, elapsed_ms, response.content_type)

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
