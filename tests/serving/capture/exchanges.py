"""Helpers that several test modules of this folder share: records, and an app to wrap."""

from __future__ import annotations

import time as clocks
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.capture.recorder import CaptureConfig, Recorded, Recorder

HEADERS = (
    (b"content-type", b"application/json"),
    (b"x-request-id", b"r-1"),
    (b"x-interlock-version", b"3"),
    (b"x-interlock-user", b"abcd"),
    (b"x-interlock-tenant", b"acme"),
)


def recorder(folder: Path, *, clock: Callable[[], float] = clocks.time, **more: Any) -> Recorder:
    """A recorder with both sinks under `folder`."""
    values = {
        "endpoint": "flights",
        "slot": "blue",
        "version": "3",
        "replica": "flights-blue-1",
        "captures_dir": folder / "captures",
        "spool_dir": folder / "spool",
    }
    return Recorder(CaptureConfig.from_mapping(values | more), clock=clock)


def record(number: int, *, time: float | None = None, **more: Any) -> Recorded:
    """The exchange number `number`, one every 10 ms from a fixed moment on."""
    values: dict[str, Any] = {
        "time": 1_795_340_000 + number / 100 if time is None else time,
        "request_id": f"r-{number}".encode(),
        "version": b"3",
        "tenant": b"acme",
        "user": b"abcd",
        "path": "/invocations",
        "content_type": b"application/json",
        "request": b'{"inputs": {"n": [%d]}}' % number,
        "status": 200,
        "response": b'{"predictions":[%d]}' % number,
        "service_ms": 2.5,
        "truncated": False,
        "replay": False,
    }
    return Recorded(**(values | more))
