"""`python -m benchmarks.llm.guards`: what output checks cost a stream, and what checks cost by themselves.

A stand-in model sends a word every 10 ms to the guards in the same process, so that only the holding
back and the checks are measured. Times are from the request to the text at the client's side.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from configs.guards import Guards
from serving.guards.layer import GuardLayer

_WORD_S = 0.01
_TEXT = (
    "Thank you for writing to us. Your parcel left our depot on Tuesday and should reach you within two "
    "working days, unless the customs office in Rotterdam asks for the missing form again. Please keep the "
    "receipt until then! If it has not come by Friday, write to us once more and we will send another one."
)
_CHEAP = {"check": "personal", "kinds": ["email", "credit_card", "iban"], "action": "redact"}
_WITH_PHONE = _CHEAP | {"kinds": ["email", "credit_card", "iban", "phone"]}
_CASES: dict[str, dict[str, Any]] = {
    "no guards": {},
    "input checks only": {"input": [_CHEAP]},
    "output, as it comes (200, 80)": {"output": [_CHEAP]},
    "output, with phone (200, 80)": {"output": [_WITH_PHONE]},
    "output, short (40, 30)": {
        "output": [_CHEAP],
        "stream": {"hold_characters": 40, "overlap_characters": 30},
    },
}


async def _model(scope: Any, receive: Any, send: Any) -> None:
    del scope
    await receive()
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    words = _TEXT.split(" ")
    due = time.perf_counter()
    for number, word in enumerate(words):
        due += _WORD_S
        await asyncio.sleep(due - time.perf_counter())
        last = number == len(words) - 1
        choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": "stop" if last else None}
        body = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _stream(app: Any) -> tuple[float, float, float, float]:
    """Milliseconds to the first and the last text, the longest gap between two, and CPU."""
    asked = {"model": "m", "stream": True, "messages": [{"role": "user", "content": _TEXT}]}
    told = [{"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}]
    times: list[float] = []

    async def receive() -> Any:
        return told.pop() if told else await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        if b'"content"' in message.get("body", b""):
            times.append(time.perf_counter())

    began, cpu = time.perf_counter(), time.process_time()
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await app(scope, receive, send)
    cpu = time.process_time() - cpu
    gap = max(b - a for a, b in itertools.pairwise(times))
    return (times[0] - began) * 1000, (times[-1] - began) * 1000, gap * 1000, cpu * 1000


def main() -> int:
    """Measure and print."""
    table = Table("", "first text", "last text", "longest gap", "CPU", box=None, pad_edge=False)
    for name, guards in _CASES.items():
        app = GuardLayer(_model, Guards.model_validate(guards), version="1") if guards else _model
        runs = [asyncio.run(_stream(app)) for _ in range(15)][1:]
        medians = [statistics.median(column) for column in zip(*runs, strict=True)]
        table.add_row(name, *(f"{value:.1f} ms" for value in medians))
    console = Console()
    console.print(table)
    words = len(_TEXT.split(" "))
    console.print(
        f"medians of 14 streams of {words} words ({len(_TEXT)} characters), {_WORD_S * 1000:.0f} ms each; "
        "(hold_characters, overlap_characters)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
