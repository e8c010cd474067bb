"""What fails, for how long, and that it recovers by itself: kills real processes under real load.

    python -m benchmarks.reliability [--out docs/reliability.md]

Starts a stack of its own in a temporary folder, sends 40 requests a second through the gateway, and
kills one thing after the other with SIGKILL. Writes the table into the page, between its markers.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving.gateway.keys import Keys
from serving.journal import Journal
from serving.records import Stage
from tests.e2e.stand import POLICY, Stand, Traffic, kill, own_settings

BEGIN = "<!-- measured: begin -->"
END = "<!-- measured: end -->"
_RATE_PER_S = 40
_SETTLE_S = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    killed: str
    fails: str
    recovers: str
    afterwards: str


def main() -> int:
    """Kill, watch, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("docs/reliability.md"))
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory(prefix="interlock-reliability-") as folder:
        stand = make_stand(Path(folder), replicas=2, bake_s=300, soak_s=3)
        try:
            stand.interlock("up")
            rows = _measure(stand)
        finally:
            stand.interlock("down", check=False)
    _write(out, rows)
    for row in rows:
        print(f"{row.killed}: {row.fails}; {row.recovers}; {row.afterwards}")
    return 0


def make_stand(folder: Path, *, replicas: int, bake_s: float, soak_s: float, warm_up_s: float = 5) -> Stand:
    """A stack of its own, not started yet."""
    settings = own_settings(folder)
    made = Stand(settings)
    policy = POLICY.replace("count: 1", f"count: {replicas}").replace("bake_s: 12", f"bake_s: {bake_s:g}")
    policy = policy.replace("soak_s: 3", f"soak_s: {soak_s:g}\n  warm_up_s: {warm_up_s:g}")
    (settings.policy_dir / "sums.yaml").write_text(policy)
    return made


def _measure(stand: Stand) -> list[Row]:
    champion = stand.register()
    stand.alias(champion)
    stand.await_release(champion, lambda one: one["state"] == "PROMOTED", 300)
    key = Keys(stand.settings).create("reliability")
    url = f"{stand.settings.gateway_url}/sums/invocations"
    with Traffic(url, key, per_s=_RATE_PER_S) as traffic:
        time.sleep(_SETTLE_S)
        rows = [_one(stand, what, traffic, strike, recovered) for what, strike, recovered in _strikes(stand)]
        rows += _canary_rows(stand, traffic, champion)
    return rows


def _strikes(stand: Stand) -> list[tuple[str, Callable[[], None], Callable[[], bool]]]:
    """What is killed, how, and how one sees that it is back."""
    settings = stand.settings
    hook_health = f"http://{settings.host}:{settings.hook_port}/health"
    gateway_up = _answers(f"{settings.gateway_url}/gw/health")
    return [
        ("a replica of the champion (of two)", lambda: _kill_replica(stand), _all_healthy(stand)),
        ("the gateway (HAProxy's worker)", lambda: _kill_worker(stand), gateway_up),
        ("the gateway (HAProxy's master and worker)", lambda: _kill_gateway(stand), gateway_up),
        ("the MLflow server", *_program(stand, "mlflow", f"{settings.mlflow_url}/health")),
        ("the Prefect server", *_program(stand, "prefect", f"{settings.prefect_url}/health")),
        ("the hook receiver", *_program(stand, "hook", hook_health)),
    ]


def _one(
    stand: Stand, what: str, traffic: Traffic, strike: Callable[[], None], recovered: Callable[[], bool]
) -> Row:
    """Kill, wait until it is back, count what clients saw meanwhile, and look whether all is as before."""
    print(f"killing {what}", file=sys.stderr)
    before = _situation(stand)
    at = time.time()
    strike()
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not recovered():
        time.sleep(0.1)
    back_s = time.time() - at
    is_back = recovered()
    settled_at = time.time()
    time.sleep(_SETTLE_S)
    after = _situation(stand)
    changed = [
        f"{name} {value}, was {before[name]}" for name, value in after.items() if value != before[name]
    ]
    if any(status != 200 for sent, status, _ in traffic.answers if sent > settled_at):
        changed.append("requests still fail")
    return Row(
        what,
        _failures(traffic, at),
        f"{back_s:.1f} s" if is_back else "NOT within 180 s",
        "NOT as before: " + ", ".join(changed) if changed else "as before",
    )


def _situation(stand: Stand) -> dict[str, Any]:
    """Who serves, what runs, and which programs are up."""
    status = stand.status()
    live: dict[str, Any] = status["live"]
    return {
        "champion": status["champion"],
        "route": live["route"],
        "versions": live["versions"],
        "healthy replicas": sum(one["healthy"] for found in live["replicas"].values() for one in found),
        "programs": sorted(one["program"] for one in stand.programs() if one["state"] == "RUNNING"),
    }


def _failures(traffic: Traffic, since: float) -> str:
    seen = [(at, status) for at, status, _ in traffic.answers if at >= since - 0.1]
    failed = [at for at, status in seen if status != 200]
    if not failed:
        return f"0 of {len(seen)} requests"
    return f"{len(failed)} of {len(seen)} requests, over {max(failed) - min(failed):.1f} s"


def _ramping_since(moment: float) -> Callable[[dict[str, Any]], bool]:
    """Whether a release has looked at live traffic after a moment (its progress outlives a kill)."""

    def ramping(release: dict[str, Any]) -> bool:
        progress = release["progress"]
        fresh = progress.get("look", 0) >= 2 and progress.get("time", 0) > moment
        return bool(release["state"] == "RUNNING" and release["stage"] == "canary" and fresh)

    return ramping


def _canary_rows(stand: Stand, traffic: Traffic, champion: str) -> list[Row]:
    """The flow run dies during a 25% canary: with the worker alive, and with the worker dead too."""
    rows: list[Row] = []
    version = stand.register(offset=0.001)
    resumed_at = time.time()
    stand.alias(version)
    for with_worker in (False, True):
        running = stand.await_release(version, _ramping_since(resumed_at), 400)
        pid = stand.flow_process(running["flow_run_url"].rsplit("/", 1)[1])
        worker = int(stand.program("worker")["pid"])
        at = time.time()
        if with_worker:
            os.kill(worker, signal.SIGSTOP)
        kill(pid)
        time.sleep(20)
        last = max((sent for sent, _, seen in traffic.answers if seen == version), default=at)
        if with_worker:
            os.kill(worker, signal.SIGCONT)
        stand.await_release(version, lambda one: one["state"] == "INTERRUPTED", 240)
        what = "the flow run, during a 25% canary" + (", with its worker stopped" if with_worker else "")
        how = "the lease (10 s here, 30 s by default)" if with_worker else "make-safe or the lease"
        back = f"all traffic on the champion after {last - at:.1f} s, by {how}"
        failures = _failures(traffic, at)
        looks = _looks(stand, version)
        resumed_at = time.time()
        stand.interlock("resume", "sums")
        stand.await_release(version, _ramping_since(resumed_at), 400)
        kept = f"resumed with the {looks} looks that it had" if _looks(stand, version) > looks else "LOST"
        rows.append(Row(what, failures, back, f"INTERRUPTED; {kept}"))
    stand.interlock("abort", "sums", check=False)
    assert stand.status()["champion"] == champion
    return rows


def _looks(stand: Stand, version: str) -> int:
    """How many looks of a release's canary are kept."""
    with closing(Journal(stand.settings.journal)) as journal:
        return len(journal.looks(journal.releases(version=version)[0].id, Stage.CANARY.value))


def _program(stand: Stand, name: str, url: str) -> tuple[Callable[[], None], Callable[[], bool]]:
    """Kills a program of the stack; it is back when another process of it answers."""
    killed: list[int] = []

    def strike() -> None:
        killed.append(int(stand.program(name)["pid"]))
        kill(killed[-1])

    def recovered() -> bool:
        now = stand.program(name)
        return now["state"] == "RUNNING" and int(now["pid"]) not in killed and _answers(url)()

    return strike, recovered


def _kill_replica(stand: Stand) -> None:
    found = [one for one in _processes("serving.replica") if str(stand.settings.state) in one[1]]
    kill(found[0][0])


def _kill_gateway(stand: Stand) -> None:
    for pid in _gateway_processes(stand):
        kill(pid)


def _kill_worker(stand: Stand) -> None:
    """HAProxy's youngest process is its worker."""
    kill(max(_gateway_processes(stand)))


def _gateway_processes(stand: Stand) -> list[int]:
    folders = (str(stand.settings.gateway_dir), str(stand.settings.run_dir))
    return [pid for pid, line in _processes("haproxy") if any(folder in line for folder in folders)]


def _processes(word: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line and int(folder.name) != os.getpid():
                found.append((int(folder.name), line))
    return found


def _all_healthy(stand: Stand) -> Callable[[], bool]:
    def healthy() -> bool:
        live: dict[str, Any] = stand.status().get("live") or {}
        replicas = [one for found in live.get("replicas", {}).values() for one in found]
        return len(replicas) == 2 and all(one["healthy"] for one in replicas)

    return healthy


def _answers(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            return httpx.get(url, timeout=1).status_code < 500
        except httpx.HTTPError:
            return False

    return answers


def _write(out: Path, rows: list[Row]) -> None:
    table = [
        "| killed (SIGKILL) | what clients saw | back by itself | afterwards |",
        "| --- | --- | --- | --- |",
    ]
    table += [f"| {row.killed} | {row.fails} | {row.recovers} | {row.afterwards} |" for row in rows]
    note = f"Measured under {_RATE_PER_S} requests/s on {os.cpu_count()} cores."
    text = out.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    out.write_text(f"{head}{BEGIN}\n{note}\n\n" + "\n".join(table) + f"\n{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
