"""How long harm that begins after a promotion lasts, with the scheduled watch at its default policy.

    python -m benchmarks.reliability.harm [--times 4] [--out docs/reliability.md]

Each time a new version is promoted under 100 requests a second, serves well for a random while, and
then fails a fifth of its requests. Measured until the previous version answers. A stack of its own;
about two minutes a time. Writes into the page, between its own markers.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from serving.gateway.keys import Keys
from tests.e2e.stand import POLICY, Stand, Traffic, eventually, own_settings, promote

BEGIN = "<!-- harm: begin -->"
END = "<!-- harm: end -->"
_RATE_PER_S = 100
_WAIT_S = 240


@dataclass(frozen=True, slots=True)
class Onset:
    """One onset of harm. `by_others` counts failures that were not the version's own errors."""

    back_s: float
    decided_s: float
    failed: int
    by_others: int
    reason: str


def main() -> int:
    """Promote, break, wait, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("docs/reliability.md"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="interlock-harm-") as folder:
        stand = Stand(own_settings(Path(folder)), POLICY.replace("bake_s: 12", "bake_s: 2"))
        try:
            stand.interlock("up")
            onsets = _measure(stand, Path(folder), chosen.times)
        finally:
            stand.interlock("down", check=False)
    _write(chosen.out, onsets)
    for onset in onsets:
        print(onset)
    return 0


def _measure(stand: Stand, folder: Path, times: int) -> list[Onset]:
    promote(stand, stand.register())
    key = Keys(stand.settings).create("harm")
    chance = random.Random(4)
    with Traffic(f"{stand.settings.gateway_url}/sums/invocations", key, per_s=_RATE_PER_S) as traffic:
        return [
            _one(stand, traffic, folder / f"broken-{number}", 0.001 * (number + 1), chance.uniform(0, 60))
            for number in range(times)
        ]


def _one(stand: Stand, traffic: Traffic, switch: Path, offset: float, good_s: float) -> Onset:
    before = stand.status()["champion"]
    version = stand.register(offset=offset, breaks_on=switch)
    promote(stand, version)
    time.sleep(good_s)
    switch.touch()
    began = time.time()
    eventually(lambda: traffic.answers[-1][2] == before, _WAIT_S, 0.02)
    back_s = time.time() - began
    time.sleep(3)
    (release,) = [one for one in stand.history() if one["version"] == version]
    seen = [(status, by) for at, status, by in traffic.answers if at > began and status != 200]
    own = sum((status, by) == (500, version) for status, by in seen)
    onset = Onset(back_s, release["decided_at"] - began, len(seen), len(seen) - own, release["reason"])
    print(onset, file=sys.stderr)
    return onset


def _write(out: Path, onsets: list[Onset]) -> None:
    lines = [
        f"Measured {len(onsets)} times under {_RATE_PER_S} requests/s on {os.cpu_count()} cores: a promoted",
        "version begins to fail 20% of its requests at a random moment; `watch` has its defaults (a run",
        "every 60 s, which looks for 45 s).",
        "",
        "| from the onset until the previous version answers | the version's failures | other failures |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {one.back_s:.1f} s | {one.failed - one.by_others} requests | {one.by_others} |"
        for one in sorted(onsets, key=lambda one: one.back_s)
    ]
    text = out.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    out.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}")


if __name__ == "__main__":
    sys.exit(main())
