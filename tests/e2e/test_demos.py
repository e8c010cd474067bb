"""Both demos to their ends, as `make demo` and `make demo-llm` run them, each in a folder of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.settings import Settings
from examples.support_bot.models import CHECKOUT, VLLM_PYTHON
from serving.processes import stack_processes

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.xdist_group("real-stack")]

_NO_VLLM = pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="needs `make vllm-env`")


@pytest.mark.parametrize(
    ("module", "versions"),
    [("examples.flights.demo", 5), pytest.param("examples.support_bot.demo", 6, marks=_NO_VLLM)],
)
def test_every_version_ends_as_it_must(tmp_path: Path, module: str, versions: int) -> None:
    command = [sys.executable, "-m", module, "--state-dir", str(tmp_path)]
    told = tmp_path / "told.txt"
    with told.open("w") as out:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=out, stderr=out)
        try:
            process.wait(1500)
        finally:
            process.send_signal(signal.SIGINT)  # it takes its stack down
            process.wait(120)
    assert process.returncode == 0, told.read_text()[-3000:]
    result = json.loads((tmp_path / "demo.json").read_text())
    assert result["as_expected"]
    assert len(result["versions"]) == versions
    assert all(one["machinery_failures"] == 0 for one in result["versions"])
    assert stack_processes(Settings(state_dir=tmp_path).run_dir) == []
