"""Every fault of the drill, rehearsed once on a stack of its own; the table of docs/reliability.md.

    python -m benchmarks.reliability.drills [--fault F ...] [--out docs/reliability.md]

It is what a user does: the files of examples/drill beside the policies, `interlock up`, `interlock
drill drill --all`. Ten minutes. With `--fault` only these, and only their rows are written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from configs.drill import Fault
from tests.e2e.stand import INTERLOCK, Stand, own_settings

BEGIN = "<!-- drill: begin -->"
END = "<!-- drill: end -->"
EXAMPLE = Path(__file__).parents[2] / "examples" / "drill"


def main() -> int:
    """Start, drill, write; 1 where a drill failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("docs/reliability.md"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="interlock-drills-") as folder:
        stand = Stand(own_settings(Path(folder)))
        (stand.settings.policy_dir / "sums.yaml").unlink()
        for name in ("drill.yaml", "held_out.csv"):
            shutil.copy(EXAMPLE / name, stand.settings.policy_dir / name)
        try:
            stand.interlock("up")
            wanted = [word for fault in chosen.fault for word in ("--fault", fault)] or ["--all"]
            done = subprocess.run(
                [*INTERLOCK, "drill", "drill", *wanted, "--json"],
                env=stand.environment(),
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            results: list[dict[str, Any]] = json.loads(done.stdout) if done.stdout else []
        finally:
            stand.interlock("down", check=False)
    for result in results:
        print(result)
    if results:
        _write(chosen.out, results)
    return done.returncode


def _write(out: Path, results: list[dict[str, Any]]) -> None:
    """Put the results into the page's table; rows of other faults stay as they are."""
    head, rest = out.read_text().split(BEGIN)
    before, tail = rest.split(END)
    known = {line.split("|")[1].strip(): line for line in before.splitlines() if line.startswith("| ")}
    rows = {fault: known[fault] for fault in get_args(Fault) if fault in known}
    rows |= {one["fault"]: _row(one) for one in results}
    lines = [
        f"Measured with `examples/drill` (60 requests/s, looks every second) on {os.cpu_count()} cores.",
        "",
        "| fault | ended | at | after the onset | last request given after | failed requests | all back |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(rows[fault] for fault in get_args(Fault) if fault in rows),
    ]
    out.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}")


def _row(one: dict[str, Any]) -> str:
    last = "never served" if one["traffic_s"] == 0 else f"{one['traffic_s']:.1f} s"
    back = "yes" if one["passed"] else "; ".join(one["problems"])
    cells = (one["fault"], one["state"], one["stage"], f"{one['stopped_s']:.1f} s", last)
    return f"| {' | '.join(cells)} | {one['failed']} of {one['requests']} | {back} |"


if __name__ == "__main__":
    sys.exit(main())
