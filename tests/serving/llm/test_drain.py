"""When a launcher believes that its engine's streams have ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.llm import process
from serving.llm.engine import EngineGauges
from serving.llm.process import Launcher
from serving.llm.source import Source

BUSY, FREE = EngineGauges(1, 0, 0.5), EngineGauges(0, 0, 0.0)


def drain(
    folder: Path, monkeypatch: pytest.MonkeyPatch, told: list[EngineGauges | None], *, ends_after: int = 99
) -> int:
    """How often the engine is asked before the drain is over; each time a second passes of ten."""
    asked, now = iter(told), [0.0]
    count = 0

    def read(*_: object) -> EngineGauges | None:
        nonlocal count
        count += 1
        return next(asked, None)

    def sleep(_: float) -> None:
        now[0] += 1

    monkeypatch.setattr(process, "read_engine", read)
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    spec: Any = SimpleNamespace(
        host="127.0.0.1", port=9, ready_file=folder / "ready", drain_s=10.0, lame_duck_s=0.0
    )
    launcher = Launcher(spec, Source("vllm"))
    engine: Any = SimpleNamespace(poll=lambda: 0 if now[0] >= ends_after else None)
    launcher._engine = engine
    launcher._drain()
    return count


def test_streams_are_waited_for_until_the_engine_says_that_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drain(tmp_path, monkeypatch, [BUSY, BUSY, FREE]) == 3


def test_an_engine_that_does_not_tell_is_not_drained_until_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drain(tmp_path, monkeypatch, [None, None, BUSY, FREE]) == 4
    assert drain(tmp_path, monkeypatch, [None] * 20) == 10


def test_an_engine_that_ended_has_nothing_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drain(tmp_path, monkeypatch, [BUSY] * 20, ends_after=4) == 4
