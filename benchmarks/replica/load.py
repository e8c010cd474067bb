"""A closed-loop HTTP/1.1 load generator, cheap enough to share a machine with what it measures.

python -m benchmarks.replica.load PORT CONNECTIONS SECONDS BODY_FILE   prints one line of JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast


class Connection(asyncio.Protocol):
    """Sends the same request again as soon as its answer is complete."""

    def __init__(
        self, request: bytes, stop_at: float, latencies_s: list[float], done: asyncio.Future[None]
    ) -> None:
        self._request = request
        self._stop_at = stop_at
        self._latencies_s = latencies_s
        self._done = done
        self._buffer = b""
        self._sent = 0.0
        self.failed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own does not inherit from it
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._buffer = b""
        now = time.perf_counter()
        self._latencies_s.append(now - self._sent)
        self.failed += not head.startswith(b"HTTP/1.1 200")
        if now < self._stop_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += exc is not None
        if not self._done.done():
            self._done.set_result(None)

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)


async def drive(port: int, connections: int, seconds: float, body: bytes) -> dict[str, float]:
    """Requests a second and latency quantiles in milliseconds."""
    request = (
        f"POST /invocations HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"x-request-id: 0123456789abcdef\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop = asyncio.get_running_loop()
    latencies_s: list[float] = []
    began = time.perf_counter()
    waiting: list[asyncio.Future[None]] = []
    drivers: list[Connection] = []
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        driver = Connection(request, began + seconds, latencies_s, done)
        await loop.create_connection(lambda driver=driver: driver, "127.0.0.1", port)
        waiting.append(done)
        drivers.append(driver)
    await asyncio.gather(*waiting)
    elapsed = time.perf_counter() - began
    ordered = sorted(latencies_s)
    return {
        "requests": len(ordered),
        "failed": sum(driver.failed for driver in drivers),
        "per_s": len(ordered) / elapsed,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
    }


if __name__ == "__main__":
    import uvloop

    port, connections, seconds, path = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(
            json.dumps(
                runner.run(drive(int(port), int(connections), float(seconds), Path(path).read_bytes()))
            )
        )
