"""Synthetic traffic for a drill: a steady pace through the gateway, with what every client got."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

_THREADS = 16
_TIMEOUT_S = 15.0
_USERS = 50_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What one client got: sent at `time` (seconds since the epoch), status 0 for no answer at all."""

    time: float
    status: int
    version: str
    waited_ms: float


@dataclass(slots=True)
class DrillTraffic:
    """The answers so far, in no particular order."""

    answers: list[Answer] = field(default_factory=list)

    def since(self, moment: float) -> list[Answer]:
        """Answers to requests sent after a moment."""
        return [one for one in list(self.answers) if one.time > moment]


@contextmanager
def traffic(url: str, key: str, *, per_s: float) -> Iterator[DrillTraffic]:
    """Requests at a steady pace, open loop up to 16 in flight, until the block ends."""
    seen, stopped = DrillTraffic(), threading.Event()
    headers = {"x-api-key": key} if key else {}

    def ask(client: httpx.Client, number: int) -> None:
        row = [(number % 100) / 100, (number % 37) / 37]
        at = time.time()
        try:
            reply = client.post(
                url,
                json={"dataframe_split": {"columns": ["a", "b"], "data": [row]}},
                headers={**headers, "x-user-id": f"drill-{number % _USERS}"},
            )
            status, version = reply.status_code, reply.headers.get("x-interlock-version", "")
        except httpx.HTTPError:
            status, version = 0, ""
        seen.answers.append(Answer(at, status, version, (time.time() - at) * 1000))

    def run() -> None:
        with (
            httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client,
            ThreadPoolExecutor(_THREADS) as pool,
        ):
            began, number = time.monotonic(), 0
            while not stopped.is_set():
                number += 1
                pool.submit(ask, client, number)
                stopped.wait(max(0.0, began + number / per_s - time.monotonic()))

    thread = threading.Thread(target=run, name="interlock-drill", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stopped.set()
        thread.join(timeout=2 * _TIMEOUT_S)
