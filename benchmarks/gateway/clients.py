"""What sends the load: wrk where the machine has it, else a client of our own (which costs more CPU)."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Target:
    """Where to send which request."""

    port: int
    path: str
    headers: dict[str, str]
    body: str


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. Failures are answers other than 2xx, and broken connections."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    failures: int


def has_wrk() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def measure(target: Target, *, seconds: float, connections: int, folder: Path) -> Measured:
    """Closed-loop load for some seconds, over keep-alive connections."""
    if has_wrk():
        return _by_wrk(target, seconds, connections, folder)
    command = [
        sys.executable,
        "-m",
        __spec__.name,
        json.dumps(asdict(target)),
        str(seconds),
        str(connections),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    return Measured(**json.loads(done.stdout))


def _by_wrk(target: Target, seconds: float, connections: int, folder: Path) -> Measured:
    script = folder / "post.lua"
    lines = ['wrk.method = "POST"', f"wrk.body = [[{target.body}]]"]
    lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in target.headers.items()]
    script.write_text("\n".join(lines))
    url = f"http://127.0.0.1:{target.port}{target.path}"
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", text)
    if total is None:
        raise RuntimeError(f"wrk said something unexpected:\n{text}")
    counts = re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", text)
    return Measured(
        requests=int(total[1]),
        seconds=float(total[2]) * _SECONDS[total[3]],
        p50_ms=_quantile_ms(text, "50%"),
        p99_ms=_quantile_ms(text, "99%"),
        failures=sum(map(int, counts)),
    )


def _quantile_ms(text: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d.]+)(us|ms|s|m)\b", text)
    return float(found[1]) * _SECONDS[found[2]] * 1000 if found else float("nan")


class _Client(asyncio.Protocol):
    """One connection that always has one request under way."""

    def __init__(self, request: bytes, run: _Run) -> None:
        self._request = request
        self._run = run
        self._buffer = b""
        self._sent = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        self._run.latencies.append(time.perf_counter() - self._sent)
        self._run.failures += not head.startswith(b"http/1.1 2")
        self._buffer = b""
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.failures += not self._run.is_over

    def _send(self) -> None:
        assert self._transport is not None
        if self._run.is_over:
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(self._request)


class _Run:
    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.failures = 0
        self.is_over = False


async def _drive(target: Target, seconds: float, connections: int) -> Measured:
    headers = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    request = (
        f"POST {target.path} HTTP/1.1\r\nhost: bench\r\n{headers}content-length: {len(target.body)}\r\n\r\n"
        f"{target.body}"
    ).encode()
    run = _Run()
    loop = asyncio.get_running_loop()
    begun = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: _Client(request, run), "127.0.0.1", target.port)
    await asyncio.sleep(seconds)
    run.is_over = True
    took_s = time.perf_counter() - begun
    sorted_ms = sorted(1000 * latency for latency in run.latencies) or [float("nan")]
    return Measured(
        requests=len(run.latencies),
        seconds=took_s,
        p50_ms=sorted_ms[len(sorted_ms) // 2],
        p99_ms=sorted_ms[len(sorted_ms) * 99 // 100],
        failures=run.failures,
    )


if __name__ == "__main__":
    import uvloop

    measured = uvloop.run(_drive(Target(**json.loads(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3])))
    print(json.dumps(asdict(measured)))
