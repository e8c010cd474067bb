"""How long a whole release takes without its bakes: from the alias in MLflow to the new champion.

    python -m benchmarks.release [--releases 3]

Starts a stack of its own, sends 100 requests a second, and releases one good version after the other
through every stage (60 shadow pairs, shares 25 and 95%; `bake_s`, `soak_s` and `warm_up_s`, the times that
a policy waits whatever the evidence, are 0), in turn without and with `replicas.start_early`. Beside it, in
the same run, what Prefect takes by itself from a flow run's creation to its start. Also times
`interlock --help`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.reliability.__main__ import make_stand
from configs.settings import Settings
from serving.gateway.keys import Keys
from serving.journal import Journal
from serving.records import ReleaseRow
from tests.e2e.stand import INTERLOCK, Stand, Traffic

_HELP_RUNS = 7
_FLOOR_RUNS = 3


def main() -> int:
    """Release, time, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--releases", type=int, default=3, help="of each kind")
    releases: int = parser.parse_args().releases
    print(f"interlock --help: median {_help_s():.2f} s")
    with tempfile.TemporaryDirectory(prefix="interlock-release-") as folder:
        stand = make_stand(Path(folder), replicas=1, bake_s=0, soak_s=0, warm_up_s=0)
        try:
            stand.interlock("up")
            champion = stand.register()
            stand.alias(champion)
            stand.await_release(champion, lambda one: one["state"] == "PROMOTED", 300)
            key = Keys(stand.settings).create("bench")
            with Traffic(f"{stand.settings.gateway_url}/sums/invocations", key, per_s=100) as traffic:
                taken: dict[bool, list[float]] = {False: [], True: []}
                for number in range(2 * releases):
                    is_early = number % 2 == 1
                    _start_early(stand, is_early)
                    version = stand.register(offset=0.001 * (number + 1))
                    begun = time.time()
                    stand.alias(version)
                    ended = _ended(stand.settings, version)
                    assert ended.ended_at is not None
                    taken[is_early].append(ended.ended_at - begun)
                    print(
                        f"release {number + 1}{', started early' if is_early else ''}: {ended.state} after "
                        f"{taken[is_early][-1]:.1f} s, of which {ended.started_at - begun:.1f} s until the "
                        "flow had claimed it"
                    )
                    print(_timeline(stand.settings, version, begun))
                plain, early = (statistics.median(taken[kind]) for kind in (False, True))
                print(f"a release, median: {plain:.1f} s, started early {early:.1f} s")
                print(f"Prefect alone, from a flow run's creation to its start: {_prefect_s(stand):.1f} s")
                version = stand.register(offset=0.01)
                begun = time.time()
                said = stand.interlock("release", "sums", version, "--wait")
                print(f"by `interlock release --wait`, {time.time() - begun:.1f} s: {said.splitlines()[-1]}")
                failed = sum(status != 200 for _, status, _ in traffic.answers)
                print(f"{failed} of {len(traffic.answers)} client requests failed")
        finally:
            stand.interlock("down", check=False)
    return 0


def _start_early(stand: Stand, wanted: bool) -> None:
    """Say so in the policy, which the next release reads."""
    path = stand.settings.policy_dir / "sums.yaml"
    text = path.read_text().replace(", start_early: true", "")
    path.write_text(text.replace("count: 1", "count: 1, start_early: true") if wanted else text)


def _ended(settings: Settings, version: str) -> ReleaseRow:
    """The release once it is over. Read from the journal: a command line each second would cost a core."""
    with closing(Journal(settings.journal)) as journal:
        while True:
            found = journal.releases(version=version)
            if found and found[0].ended_at:
                return found[0]
            time.sleep(0.5)


def _prefect_s(stand: Stand) -> float:
    """Seconds from the creation of a flow run to its start, the median of some runs."""
    api, taken = stand.settings.prefect_url, []
    with httpx.Client(base_url=api, timeout=30, trust_env=False) as client:
        found = client.get("/deployments/name/reconcile/reconcile").raise_for_status().json()
        for _ in range(_FLOOR_RUNS):
            made = (
                client.post(f"/deployments/{found['id']}/create_flow_run", json={}).raise_for_status().json()
            )
            run: dict[str, Any] = {}
            while not run.get("end_time"):
                time.sleep(0.5)
                run = client.get(f"/flow_runs/{made['id']}").raise_for_status().json()
            created, started = (datetime.fromisoformat(run[name]) for name in ("created", "start_time"))
            taken.append((started - created).total_seconds())
    return statistics.median(taken)


def _timeline(settings: Settings, version: str, begun: float) -> str:
    """When the release's trail says what, in seconds since the alias was set."""
    journal = Journal(settings.journal)
    release_id = journal.releases(version=version)[0].id
    lines = [row for row in reversed(journal.audit(limit=500)) if row.release_id == release_id]
    journal.close()
    return "  " + ", ".join(
        f"{row.time - begun:.1f} {row.what} {row.details.get('stage', '')}".strip() for row in lines
    )


def _help_s() -> float:
    """Seconds of `interlock --help`, the median of some runs."""
    taken: list[float] = []
    for _ in range(_HELP_RUNS):
        begun = time.perf_counter()
        subprocess.run([*INTERLOCK, "--help"], check=True, capture_output=True)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
