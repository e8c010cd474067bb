"""Steady traffic from asyncio clients in a thread of their own, with keep-alive and no retries.

A request that fails in any way (reset, cut short, no answer) is recorded as status 0: what a
release does to its users must be visible here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.serving.gateway.lab import Lab, eventually


@dataclass(frozen=True)
class Sample:
    sent: float
    done: float
    status: int
    version: str
    request_id: str
    problem: str = ""


@dataclass
class Load:
    lab: Lab
    path: str = "/flights/invocations"
    clients: int = 8
    command: dict = field(default_factory=dict)
    users: int = 1000
    pause_s: float = 0.002
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        self._thread.start()
        try:
            while len(self.samples) < self.clients:
                time.sleep(0.01)
            yield self
        finally:
            self._stopping.set()
            self._thread.join(30)
            assert not self._thread.is_alive()

    def until_asked_since(self, moment: float, count: int = 8, wait_s: float = 60) -> None:
        """Wait until so many requests were sent after a moment and answered."""
        eventually(lambda: sum(sample.sent > moment for sample in self.samples[-1000:]) >= count, wait_s)

    def failed(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.status != 200]

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        plug: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        body = json.dumps(self.command).encode()
        while not self._stopping.is_set():
            user = chance.randrange(self.users)
            sent = time.monotonic()
            try:
                if plug is None:
                    plug = await asyncio.open_connection("127.0.0.1", self.lab.settings.gateway_port)
                status, headers = await asyncio.wait_for(self._ask(plug, body, user), 20)
                if headers.get("connection", "").lower() == "close":
                    plug[1].close()
                    plug = None
                version, name, problem = headers.get("x-interlock-version", ""), headers["x-request-id"], ""
            except (OSError, asyncio.IncompleteReadError, TimeoutError, IndexError, KeyError) as error:
                status, version, name, problem = 0, "", "", repr(error)
                if plug is not None:
                    plug[1].close()
                plug = None
            self.samples.append(Sample(sent, time.monotonic(), status, version, name, problem))
            await asyncio.sleep(self.pause_s)
        if plug is not None:
            plug[1].close()

    async def _ask(
        self, plug: tuple[asyncio.StreamReader, asyncio.StreamWriter], body: bytes, user: int
    ) -> tuple[int, dict[str, str]]:
        reader, writer = plug
        writer.write(
            f"POST {self.path} HTTP/1.1\r\nhost: lab\r\nx-api-key: {self.lab.key}\r\n"
            f"x-user-id: user-{user}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        await reader.readexactly(int(headers.get("content-length", 0)))
        return int(first.split()[1]), headers
