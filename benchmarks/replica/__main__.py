"""`make bench-replica`: the replica beside MLflow's own scoring server, and what the capture costs.

One model (a small scikit-learn pipeline), one row a request, 16 connections, the server on one
core and the load on another. The servers run side by side and are loaded in turn, so that a noisy
machine hits all alike; ratios are of medians over the rounds. `cpu` is the server's own CPU time
a request, which other load on the machine does not change.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cores import cpu_s, pin
from benchmarks.replica import capture

CONNECTIONS = 16
START_S_MAX = 240
PEER = "mlflow scoring server"
PLAIN, JOINED, SILENT = "replica", "replica, batch", "replica, batch, no capture"


@dataclass(frozen=True)
class Server:
    """One server under test, pinned to the first core once it runs."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu_s(self) -> float:
        """User and system time so far."""
        return cpu_s([self.process.pid])


def main() -> int:
    """Print the table; status 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server outlives us
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        costs = capture.measure(folder, _body(folder))
        rounds = _compare(folder, options.rounds, options.seconds)
    return _report(rounds, costs)


def _compare(folder: Path, rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    model, tracking = _register(folder)
    results: dict[str, list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_peer(model))]
        for name, changes in (
            (PLAIN, {"concurrency": 4}),
            (JOINED, {"concurrency": 1, "batch_max_rows": 64}),
            (SILENT, {"concurrency": 1, "batch_max_rows": 64, "capture": None, "spool": None}),
        ):
            servers.append(stack.enter_context(_replica(name, folder, tracking, changes)))
        for server in servers:
            _await(server)
            _pin(server.process.pid, 0)
            _load(server, folder, 1.0)  # warm
        for _ in range(rounds):
            for server in servers:
                results.setdefault(server.name, []).append(_load(server, folder, seconds))
    return results


def _load(server: Server, folder: Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.replica.load"]
    arguments = [str(server.port), str(CONNECTIONS), str(seconds), str(folder / "body.json")]
    before = server.cpu_s()
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        _pin(process.pid, 1)
        answer, _ = process.communicate()
    result: dict[str, float] = json.loads(answer)
    assert result["failed"] == 0, f"{server.name}: {result}"
    result["cpu_us"] = 1e6 * (server.cpu_s() - before) / result["requests"]
    return result


def _report(rounds: dict[str, list[dict[str, float]]], costs: dict[str, float]) -> int:
    middle = {
        name: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for name, results in rounds.items()
    }
    peer = middle[PEER]
    print(f"one row a request, {CONNECTIONS} connections, one core, medians of {len(rounds[PEER])} rounds\n")
    print(f"{'':28}{'req/s':>8}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}{'ratio':>8}")
    for name, result in middle.items():
        print(
            f"{name:28}{result['per_s']:8.0f}{result['per_s'] / peer['per_s']:8.2f}{result['p50_ms']:9.1f}"
            f"{result['p99_ms']:9.1f}{result['cpu_us']:9.0f}{peer['cpu_us'] / result['cpu_us']:8.2f}"
        )
    print("\nthe capture, CPU us a request")
    for kind, cost in costs.items():
        print(f"{kind:34}{cost:6.1f}")
    targets = {
        "replica >= 1.2x": middle[PLAIN]["per_s"] >= 1.2 * peer["per_s"],
        "batch >= 5x": middle[JOINED]["per_s"] >= 5 * peer["per_s"],
        "p99 lower": max(middle[PLAIN]["p99_ms"], middle[JOINED]["p99_ms"]) < peer["p99_ms"],
        "capture <= 12 us": costs["capture"] <= 12,
    }
    print()
    for target, is_met in targets.items():
        print(f"{'met   ' if is_met else 'MISSED'}  {target}")
    return 0 if all(targets.values()) else 1


def _register(folder: Path) -> tuple[Path, str]:
    """The model's folder, and the registry that has it as version 1 of `flights`."""
    command = [sys.executable, "-m", "tests.serving.replica.registering", str(folder), "flights"]
    subprocess.run(command, check=True, capture_output=True)
    model = next((folder / "art").rglob("MLmodel")).parent
    return model, f"sqlite:///{folder}/mlflow.db"


def _body(folder: Path) -> bytes:
    columns = ["delay", "hour", "carrier", "distance"]
    document = {"dataframe_split": {"columns": columns, "data": [[0.5, 7, "AA", 733.0]]}}
    body = json.dumps(document).encode()
    (folder / "body.json").write_bytes(body)
    return body


def _peer(model: Path) -> contextlib.AbstractContextManager[Server]:
    """MLflow's own app, as `mlflow models serve` runs it, with one worker."""
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "--port",
        str(port),
        "--workers",
        "1",
        "--log-level",
        "warning",
    ]
    environment = {"__pyfunc_model_path__": str(model)}
    return _running(PEER, port, [*command, "mlflow.pyfunc.scoring_server.app:app"], environment)


def _replica(
    name: str, folder: Path, tracking: str, changes: dict[str, object]
) -> contextlib.AbstractContextManager[Server]:
    port = _free_port()
    home = folder / str(port)
    spec = {
        "endpoint": "flights",
        "slot": "blue",
        "version": "1",
        "uri": "models:/flights/1",
        "port": port,
        "mlflow_tracking_uri": tracking,
        "model_cache_dir": str(folder / "models"),
        "capture": {"captures_dir": str(home / "captures")},
        "spool": {"dir": str(home / "spool")},
        "lame_duck_s": 0,
    } | changes
    path = folder / f"{port}.json"
    path.write_text(json.dumps(spec))
    return _running(name, port, [sys.executable, "-m", "serving.replica", str(path)], {})


@contextlib.contextmanager
def _running(name: str, port: int, command: list[str], environment: dict[str, str]) -> Generator[Server]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    process = subprocess.Popen(command, env=os.environ | threads | environment, stderr=subprocess.DEVNULL)
    try:
        yield Server(name, port, process)
    finally:
        process.kill()
        process.wait()


def _await(server: Server) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not _is_healthy(server.port):
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{server.name} did not start")
        time.sleep(0.2)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def _pin(pid: int, core: int) -> None:
    """To one of our cores, where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        pin(pid, {cores[core]})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
