"""What the capture costs a request, in CPU microseconds of the whole process (wrapper and writing)."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from pathlib import Path
from typing import Any

from serving.capture.middleware import CaptureMiddleware
from serving.capture.recorder import CaptureConfig

REQUESTS = 4_000
ROUNDS = 9
HEADERS = [
    (b"host", b"127.0.0.1:8700"),
    (b"user-agent", b"bench"),
    (b"content-type", b"application/json"),
    (b"content-length", b"240"),
    (b"x-request-id", b"7d9c1f2e-0d3b-4f19-a6f3-1a7d0f5b9f55"),
    (b"x-interlock-version", b"3"),
    (b"x-interlock-tenant", b"demo"),
    (b"x-interlock-user", b"0f" * 16),
]
ANSWER = b'{"predictions":[0.123456789]}'


def measure(folder: Path, body: bytes) -> dict[str, float]:
    """Median extra CPU microseconds a request, by what is switched on. Rounds alternate."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": ANSWER})

    kinds: dict[str, dict[str, Any]] = {
        "capture": {"captures_dir": folder / "c"},
        "spool": {"spool_dir": folder / "s"},
        "capture and spool": {"captures_dir": folder / "c", "spool_dir": folder / "s"},
        "capture with one column dropped": {"captures_dir": folder / "c", "drop": ["carrier"]},
    }
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(ROUNDS):
        bare = _cpu_us(app, body)
        for kind, sinks in kinds.items():
            values = {"endpoint": "bench", "slot": "blue", "version": "3", "replica": f"r{number}"} | sinks
            middleware = CaptureMiddleware(app, CaptureConfig.from_mapping(values))
            costs[kind].append(_cpu_us(middleware, body, middleware.recorder.close) - bare)
            assert middleware.recorder.counts.dropped == 0
    return {kind: statistics.median(values) for kind, values in costs.items()}


def _cpu_us(app: Any, body: bytes, close: Any = lambda: None) -> float:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        pass

    async def drive() -> None:
        for number in range(REQUESTS):
            await app(
                {"type": "http", "method": "POST", "path": "/invocations", "headers": HEADERS}, receive, send
            )
            if number % 100 == 0:  # about the pace of a busy replica: the recorder's thread gets its turns
                await asyncio.sleep(0.002)

    gc.collect()
    began = time.process_time()
    asyncio.run(drive())
    close()
    return (time.process_time() - began) / REQUESTS * 1e6
