"""Both demos to their ends, as `make demo` and `make demo-llm` run them, each in a folder of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.settings import Settings
from examples.support_bot.models import CHECKOUT, VLLM_PYTHON
from serving.processes import stack_processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.xdist_group("real-stack")]


def start(folder: Path, module: str) -> subprocess.Popen[bytes]:
    """A demo in a folder of its own; what it says is in `told.txt`."""
    command = [sys.executable, "-m", module, "--state-dir", str(folder)]
    with (folder / "told.txt").open("w") as out:
        return subprocess.Popen(command, cwd=CHECKOUT, stdout=out, stderr=out)


def to_its_end(folder: Path, module: str, versions: int) -> None:
    process = start(folder, module)
    try:
        process.wait(1500)
    finally:
        process.send_signal(signal.SIGINT)  # it takes its stack down
        process.wait(120)
    assert process.returncode == 0, (folder / "told.txt").read_text()[-3000:]
    result = json.loads((folder / "demo.json").read_text())
    assert result["as_expected"]
    assert len(result["versions"]) == versions
    assert all(one["machinery_failures"] == 0 for one in result["versions"])
    assert stack_processes(Settings(state_dir=folder).run_dir) == []


def test_the_demo_works_on_top_of_one_that_was_interrupted(tmp_path: Path) -> None:
    """Ctrl-C once travellers ask, and again from the start: every version ends as it must."""
    process = start(tmp_path, "examples.flights.demo")
    try:
        await_words(process, tmp_path / "told.txt", "Travellers start asking")
        process.send_signal(signal.SIGINT)
        assert process.wait(120) != 0
    finally:
        process.kill()
    assert stack_processes(Settings(state_dir=tmp_path).run_dir) == []
    assert not (tmp_path / "demo.json").exists()
    to_its_end(tmp_path, "examples.flights.demo", 5)


@pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="needs `make vllm-env`")
def test_every_model_and_prompt_ends_as_it_must(tmp_path: Path) -> None:
    to_its_end(tmp_path, "examples.support_bot.demo", 6)


def await_words(process: subprocess.Popen[bytes], told: Path, words: str) -> None:
    deadline = time.monotonic() + 600
    while words not in told.read_text():
        assert process.poll() is None, told.read_text()[-3000:]
        assert time.monotonic() < deadline, told.read_text()[-3000:]
        time.sleep(1)
