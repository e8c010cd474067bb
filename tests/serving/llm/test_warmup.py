"""Which prompts a new replica is warmed up with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from serving.endpoint import Slot
from serving.llm.warmup import _READ_MAX as READ_MAX
from serving.llm.warmup import recent_prompts
from tests.serving.capture.exchanges import record, recorder


def spool(folder: Path, slot: Slot, numbers: range, path: str = "/v1/completions") -> None:
    writing = recorder(folder, captures_dir=None, spool_dir=folder / slot.value)
    for start in range(numbers.start, numbers.stop, 2000):
        for number in numbers[start - numbers.start :][:2000]:
            writing.offer(record(number, path=path, request=b'{"prompt": "hello"}'))
        writing.drain()
    writing.close()


def test_the_newest_prompts_of_both_slots(tmp_path: Path) -> None:
    """More lie in a slot than are read, and the oldest come first there."""
    spool(tmp_path, Slot.BLUE, range(READ_MAX + 1000))
    spool(tmp_path, Slot.GREEN, range(READ_MAX + 1000, READ_MAX + 1002))
    spool(tmp_path, Slot.GREEN, range(READ_MAX + 2000, READ_MAX + 2050), "/v1/embeddings")
    serving = SimpleNamespace(warm_up_prompts=4)
    spec: Any = SimpleNamespace(serving=serving, spool=None, spool_of_endpoint=tmp_path)
    found = [one.request_id for one in recent_prompts(spec)]
    assert found == [f"r-{READ_MAX + number}" for number in (998, 999, 1000, 1001)]
    serving.warm_up_prompts = 0
    assert recent_prompts(spec) == []
