"""Every fault of the drill, rehearsed once on a stack of its own; the table of docs/reliability.md.

    python -m benchmarks.reliability.drills [--fault F ...] [--out docs/reliability.md]

It is what a user does: the files of examples/drill beside the policies, `interlock up`, `interlock
drill drill --all`. Ten minutes. With `--fault` only these, and the page is left alone.
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
from typing import Any

from tests.e2e.stand import INTERLOCK, Stand, own_settings

BEGIN = "<!-- drill: begin -->"
END = "<!-- drill: end -->"
EXAMPLE = Path(__file__).parents[2] / "examples" / "drill"


def main() -> int:
    """Start, drill, write; 1 where a drill failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
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
    if not chosen.fault and results:
        _write(chosen.out, results)
    return done.returncode


def _write(out: Path, results: list[dict[str, Any]]) -> None:
    lines = [
        f"Measured with `examples/drill` (60 requests/s, looks every second) on {os.cpu_count()} cores.",
        "",
        "| fault | ended | at | after the onset | last request given after | failed requests | all back |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {one['fault']} | {one['state']} | {one['stage']} | {one['stopped_s']:.1f} s | "
        f"{'never served' if one['traffic_s'] == 0 else format(one['traffic_s'], '.1f') + ' s'} | "
        f"{one['failed']} of {one['requests']} | {'yes' if one['passed'] else '; '.join(one['problems'])} |"
        for one in results
    ]
    text = out.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    out.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
