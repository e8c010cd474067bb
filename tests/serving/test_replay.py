"""The shadow's replay: bounded, fair, paused when told, and nothing lost in silence."""

import asyncio
import http.server
import random
import threading
from collections.abc import Generator
from typing import Any

import pytest

from serving.endpoint import Exchange, Reply, Slot
from serving.replay import EndpointAsker, HttpAsker, Replayer, Side


def exchange(number: int, *, time: float = 1000.0) -> Exchange:
    return Exchange(
        request_id=f"r-{number}",
        time=time + number / 100,
        version="1",
        path="/invocations",
        content_type="application/json",
        request=b"%d" % number,
        status=200,
        response=b"champion %d" % number,
        service_ms=3.0,
    )


class World:
    """A clock that only sleeping moves, and an asker that notes what it was asked and when."""

    def __init__(self, *, answer_s: float = 0.0) -> None:
        self.now = 0.0
        self.asked: list[tuple[float, Side, str]] = []
        self.answer_s = answer_s
        self.at_once = self.most_at_once = 0
        self.closed = False
        self._sleepers: list[tuple[float, int, object]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        mine = (self.now + seconds, len(self.asked), object())
        self._sleepers.append(mine)
        while True:
            for _ in range(20):  # let everyone else reach their own sleep; then the earliest wakes
                await asyncio.sleep(0)
            if mine is min(self._sleepers, key=lambda sleeper: sleeper[0]):
                self._sleepers.remove(mine)
                self.now = max(self.now, mine[0])
                return

    async def ask(self, side: Side, exchange: Exchange) -> Reply:
        self.asked.append((self.now, side, exchange.request_id))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.answer_s:
            await self.sleep(self.answer_s)
        self.at_once -= 1
        return Reply(200, b"%s %s" % (side.encode(), exchange.request), 5.0)

    async def close(self) -> None:
        self.closed = True

    def replayer(self, **more: Any) -> Replayer:
        options: dict[str, Any] = {
            "rate_per_s": 10.0,
            "both_share": 0.0,
            "rng": random.Random(1),
            "clock": self.clock,
            "wall_clock": lambda: 2000.0 + self.now,
            "sleep": self.sleep,
        }
        return Replayer(self, **(options | more))


def test_pairs_the_live_answer_with_the_candidates() -> None:
    world = World()
    with world.replayer() as replayer:
        batch = replayer.run_once([exchange(1), exchange(2)])
    assert [pair.request_id for pair in batch.pairs] == ["r-1", "r-2"]
    assert batch.pairs[0].champion_body == b"champion 1"
    assert batch.pairs[0].champion_status == 200
    assert batch.pairs[0].candidate.body == b"candidate 1"
    assert batch.pairs[0].champion_again is None
    assert {side for _, side, _ in world.asked} == {Side.CANDIDATE}
    assert world.closed


def test_keeps_to_the_rate_over_batches() -> None:
    world = World()
    with world.replayer(rate_per_s=10, concurrency=4) as replayer:
        replayer.run_once([exchange(n) for n in range(25)])
        replayer.run_once([exchange(n) for n in range(25)])
    times = [when for when, _, _ in world.asked]
    assert times == pytest.approx([n / 10 for n in range(50)])


def test_keeps_to_the_concurrency() -> None:
    world = World(answer_s=3.0)
    with world.replayer(rate_per_s=1000, concurrency=2) as replayer:
        batch = replayer.run_once([exchange(n) for n in range(10)])
    assert world.most_at_once == 2
    assert len(batch.pairs) == 10


def test_what_the_rate_leaves_no_time_for_is_left_out_at_random() -> None:
    world = World()
    with world.replayer(rate_per_s=10) as replayer:
        batch = replayer.run_once([exchange(n) for n in range(200)], budget_s=2.0)
        assert (batch.seen, len(batch.pairs), batch.unsent) == (200, 20, 180)
        assert batch.coverage == pytest.approx(0.1)
        numbers = [int(pair.request_id[2:]) for pair in batch.pairs]
        assert numbers == sorted(numbers)
        assert max(numbers) > 100, "spread over the batch, not its head"
        assert world.now <= 2.0
        replayer.run_once([exchange(1)])
        assert (replayer.totals.seen, replayer.totals.replayed) == (201, 21)


def test_a_slow_candidate_ends_the_batch_in_time() -> None:
    world = World(answer_s=1.0)
    with world.replayer(rate_per_s=10, concurrency=1) as replayer:
        batch = replayer.run_once([exchange(n) for n in range(20)], budget_s=2.0)
    assert 2 <= len(batch.pairs) <= 3
    assert batch.unsent == 20 - len(batch.pairs)


def test_asks_both_in_random_order_on_a_random_share() -> None:
    world = World()
    with world.replayer(both_share=0.3, rate_per_s=1000, concurrency=1) as replayer:
        batch = replayer.run_once([exchange(n) for n in range(400)])
    both = [pair for pair in batch.pairs if pair.champion_again is not None]
    assert 80 <= len(both) <= 160
    assert 0.3 < sum(pair.candidate_first for pair in both) / len(both) < 0.7
    order: dict[str, list[Side]] = {}
    for _, side, request_id in world.asked:
        order.setdefault(request_id, []).append(side)
    for pair in both:
        assert pair.champion_again is not None
        assert pair.champion_again.body == b"champion %s" % pair.exchange.request
        first = order[pair.request_id][0]
        assert first is (Side.CANDIDATE if pair.candidate_first else Side.CHAMPION)


def test_the_same_seed_replays_the_same() -> None:
    asked = []
    for _ in range(2):
        world = World()
        with world.replayer(both_share=0.5, rng=random.Random(3)) as replayer:
            replayer.run_once([exchange(n) for n in range(50)], budget_s=2)
        asked.append(world.asked)
    assert asked[0] == asked[1]


def test_pauses_while_it_must() -> None:
    world = World()
    with world.replayer(must_pause=lambda: 0.2 < world.now < 3.0, concurrency=3) as replayer:
        batch = replayer.run_once([exchange(n) for n in range(10)])
    assert not [when for when, _, _ in world.asked if 0.35 < when < 3.0]
    assert len(batch.pairs) == 10
    assert 2.4 < batch.paused_s < 3.2


def test_a_pause_that_outlasts_the_budget_leaves_the_rest_unsent() -> None:
    world = World()
    with world.replayer(must_pause=lambda: True) as replayer:
        batch = replayer.run_once([exchange(n) for n in range(10)], budget_s=1.0)
    assert (batch.pairs, batch.unsent, batch.lag_s) == ([], 10, None)
    assert world.asked == []


def test_reports_its_lag() -> None:
    world = World()
    with world.replayer() as replayer:
        assert replayer.run_once([exchange(1, time=1990.0)]).lag_s == pytest.approx(9.99)


def test_nothing_to_replay() -> None:
    with World().replayer() as replayer:
        batch = replayer.run_once([])
    assert (batch.pairs, batch.seen, batch.coverage) == ([], 0, 1.0)


def test_closed_means_closed() -> None:
    replayer = World().replayer()
    replayer.close()
    replayer.close()
    with pytest.raises(RuntimeError, match="closed"):
        replayer.run_once([])


class FakeEndpoint:
    """Only `invoke`: answers with the slot's name."""

    def invoke(self, slot: Slot, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        assert (path, content_type, timeout_s) == ("/invocations", "application/json", 2.0)
        return Reply(200, slot.encode() + body, 1.0)


def test_through_an_endpoint() -> None:
    sides = {Side.CHAMPION: Slot.BLUE, Side.CANDIDATE: Slot.GREEN}
    asker = EndpointAsker(FakeEndpoint(), sides, timeout_s=2.0)  # type: ignore[arg-type]
    with Replayer(asker, rate_per_s=1000, both_share=1.0) as replayer:
        [pair] = replayer.run_once([exchange(7)]).pairs
    assert pair.candidate.body == b"green7"
    assert pair.champion_again is not None
    assert pair.champion_again.body == b"blue7"


@pytest.fixture
def server() -> Generator[tuple[str, list[dict[str, str]]]]:
    headers: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers.append({name.lower(): value for name, value in self.headers.items()})
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(503 if body == b"13" else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"127.0.0.1:{serving.server_port}", headers
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_over_http(server: tuple[str, list[dict[str, str]]]) -> None:
    address, headers = server
    asker = HttpAsker({Side.CANDIDATE: [address], Side.CHAMPION: ["127.0.0.1:9"]}, timeout_s=5)
    with Replayer(asker, rate_per_s=1000, both_share=1.0) as replayer:
        pairs = replayer.run_once([exchange(7), exchange(13)]).pairs
        again = replayer.run_once([exchange(8)]).pairs
    assert [(pair.candidate.status, pair.candidate.body) for pair in pairs] == [(200, b"7"), (503, b"13")]
    assert again[0].candidate.body == b"8"
    assert pairs[0].candidate.elapsed_ms > 0
    assert pairs[0].champion_again is not None
    assert pairs[0].champion_again.status == 0, "nobody listens there: a reply, not an exception"
    assert {sent["x-request-id"] for sent in headers} == {"r-7", "r-13", "r-8"}
    assert {sent["x-interlock-replay"] for sent in headers} == {"1"}
    assert {sent["content-type"] for sent in headers} == {"application/json"}


def test_without_a_candidate_there_is_nothing_to_ask() -> None:
    with pytest.raises(ValueError, match="deploy it"):
        HttpAsker({Side.CANDIDATE: []}, timeout_s=1)
