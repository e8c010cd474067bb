"""`make bench-llm`: what gateway and capture cost a stream, beside vLLM itself.

They are measured in turn, round by round, so that a busy machine slows all alike; differences are
medians over the rounds of the difference within a round. The model's layers make a token as slow as a real
model's on a GPU (some 10 ms): beside a token of one millisecond the gateway weighs ten times as much, and
client, gateway and vLLM's two processes share two cores here, unless `--own-core` keeps the engine apart from
everything else. Streams are read as raw bytes: a client's parsing would weigh more than what is measured.
All three ask one engine, the first one around its capture: two engines of the same making were 5% apart. CPU
time is that of vLLM's API server and of the gateway, the engine's own not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks.llm.stand import NAME, Subject, lineup

_TOKENS = 64
_PROMPT = "Where is my parcel? It should have arrived two days ago. " * 4


@dataclass(slots=True)
class Round:
    """One subject's streams of one round. Milliseconds; `tokens` and `cpu_s` of all streams in `seconds`."""

    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    failed: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Throughput."""
        return self.tokens / self.seconds


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; exit status 1 where a stream failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--streams", type=int, default=24, help="streams of one subject in a round")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--layers", type=int, default=64, help="of the model: what a token costs")
    parser.add_argument(
        "--own-core",
        action="store_true",
        help="the engine computes on a core of its own, as a GPU would, instead of sharing with the rest",
    )
    told = parser.parse_args(arguments)
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="bench-llm-") as folder,
        lineup(Path(folder), told.layers, own_core=told.own_core) as subjects,
    ):
        rounds = asyncio.run(_measure(subjects, told.rounds, told.streams, told.concurrency))
    console.print(_table(rounds))
    console.print("Wanted of capture and gateway together: TTFT p50 under +1 ms, throughput not under -2%.")
    console.print(
        f"{told.rounds} rounds of {told.streams} streams, {told.concurrency} at a time, {_TOKENS} tokens each"
    )
    direct, *others = rounds
    for name in others:
        console.print(f"{name}: {_difference(rounds[direct], rounds[name])}", markup=False, soft_wrap=True)
    return 1 if any(one.failed for found in rounds.values() for one in found) else 0


async def _measure(
    subjects: tuple[Subject, ...], rounds: int, streams: int, concurrency: int
) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {one.name: [] for one in subjects}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        for number in range(rounds + 1):
            for subject in subjects if number % 2 else subjects[::-1]:
                measured = await _round(session, subject, streams, concurrency)
                if number:  # the first warms both up
                    found[subject.name].append(measured)
    return found


async def _round(session: aiohttp.ClientSession, subject: Subject, streams: int, concurrency: int) -> Round:
    done = Round()
    numbers = iter(range(streams))

    async def in_turn() -> None:
        for _ in numbers:
            await _stream(session, subject, done)

    began, cpu_s = time.perf_counter(), subject.cpu_s()
    await asyncio.gather(*(in_turn() for _ in range(concurrency)))
    done.seconds, done.cpu_s = time.perf_counter() - began, subject.cpu_s() - cpu_s
    return done


async def _stream(session: aiohttp.ClientSession, subject: Subject, done: Round) -> None:
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    headers = {"content-type": "application/json", **subject.headers}
    began = time.perf_counter()
    url = f"{subject.base_url}/chat/completions"
    async with session.post(url, data=json.dumps(body), headers=headers) as reply:
        last = 0.0
        async for chunk in reply.content.iter_any():
            now = time.perf_counter()
            if b'"delta"' not in chunk:
                continue
            if last:
                done.itl.append((now - last) * 1000)
            else:
                done.ttft.append((now - began) * 1000)
            last = now
        done.failed += reply.status != 200
        done.tokens += _TOKENS


def _table(rounds: dict[str, list[Round]]) -> Table:
    columns = ("", "TTFT p50", "p99", "between tokens p50", "p99", "tokens/s", "CPU a token")
    table = Table(*columns, box=None, pad_edge=False)
    for name, found in rounds.items():
        ttft = [value for one in found for value in one.ttft]
        itl = [value for one in found for value in one.itl]
        rate = statistics.median(one.tokens_per_s for one in found)
        cpu_us = sum(one.cpu_s for one in found) / sum(one.tokens for one in found) * 1e6
        times = (f"{_quantile(v, q):.2f} ms" for v in (ttft, itl) for q in (0.5, 0.99))
        table.add_row(name, *times, f"{rate:.0f}", f"{cpu_us:.0f} us")
    return table


def _difference(direct: list[Round], ours: list[Round]) -> str:
    pairs = list(zip(direct, ours, strict=True))
    ttft = statistics.median(_quantile(b.ttft, 0.5) - _quantile(a.ttft, 0.5) for a, b in pairs)
    itl = statistics.median(_quantile(b.itl, 0.5) - _quantile(a.itl, 0.5) for a, b in pairs)
    rate = statistics.median(b.tokens_per_s / a.tokens_per_s - 1 for a, b in pairs)
    return f"TTFT p50 {ttft:+.2f} ms, between tokens p50 {itl:+.3f} ms, throughput {rate:+.1%}"


def _quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


if __name__ == "__main__":
    sys.exit(main())
