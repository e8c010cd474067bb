"""An engine by itself: no launcher, no capture, no gateway; what ours are compared with."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.gateway.subjects import free_port

VLLM_VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@contextlib.contextmanager
def bare_engine(
    command: Sequence[str],
    model: Path,
    name: str,
    log: Path,
    *options: str,
    variables: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Its base URL, at once: it is still starting; see `await_models`. It ends with the context."""
    port = free_port()
    told = ["--model", str(model), "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *told, *options],
            env={**os.environ, **VLLM_VARIABLES, **(variables or {})},
            stdout=out,
            stderr=out,
        )
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def await_models(base_url: str, wait_s: float) -> None:
    """Until an engine answers. Raises TimeoutError."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            with urllib.request.urlopen(f"{base_url}/models", timeout=5) as reply:
                json.load(reply)
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{base_url} did not answer within {wait_s:g} s") from error
            time.sleep(0.2)
