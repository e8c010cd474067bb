"""`make bench-decisions`: who rolls back good versions, and after how many requests bad ones go.

Seeds are fixed here, before any result was seen: scenario i uses SEED + i. `--scale 0.1` runs a
tenth of the streams. Writes docs/decisions-benchmark.md and .svg.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks.decisions.engines import Controller, ErrorProcess
from benchmarks.decisions.peers import Rule, all_rules
from benchmarks.decisions.report import write_report
from benchmarks.decisions.streams import (
    HARMS,
    NOISY_HOST,
    NULLS,
    Scenario,
    constant,
    doubled_tail,
    play,
    play_users,
    slower,
)

SEED = 20_261_122
UNITS = 20_000
STREAMS_OURS, STREAMS_PEERS, STREAMS_HARM, STREAMS_CONTROLLER = 20_000, 2_000, 2_000, 4_000
STREAMS_FAST = 10_000
CHUNK = 5_000


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one scenario. `units` holds candidate units until rollback, inf where never."""

    scenario: str
    method: str
    units: NDArray[np.float64]

    @property
    def share(self) -> float:
        """Share of streams that were rolled back."""
        return float(np.isfinite(self.units).mean())

    @property
    def upper(self) -> float:
        """One-sided 99% upper bound of that share (Clopper-Pearson)."""
        k, n = int(np.isfinite(self.units).sum()), self.units.size
        return 1.0 if k == n else float(beta.ppf(0.99, k + 1, n - k))

    def quantile(self, q: float) -> float:
        """Candidate units until rollback; inf where fewer than q of the streams were rolled back."""
        return float(np.quantile(self.units, q, method="higher"))


def race(
    scenario: Scenario, methods: list[Rule], *, streams: int, per_look: int, rng: np.random.Generator
) -> list[Row]:
    """All methods on the same streams."""
    looks = UNITS // per_look
    first = {method.name: np.full(streams, np.inf) for method in methods}
    played = np.zeros(streams)  # expected candidate units: what an operator plans with
    for counts in play(scenario, streams=streams, looks=looks, per_look=per_look, rng=rng):
        played += 20 * per_look * counts.pi
        for method in methods:
            mine = first[method.name]
            rejected = method.look(counts) & np.isinf(mine)
            mine[rejected] = played[rejected]
        if all(np.isfinite(mine).all() for mine in first.values()):
            break
    return [Row(scenario.name, name, units) for name, units in first.items()]


def race_ours(scenario: Scenario, *, streams: int, per_look: int, rng: np.random.Generator) -> Row:
    """Our error process alone, in chunks that fit into memory."""
    parts: list[NDArray[np.float64]] = []
    for start in range(0, streams, CHUNK):
        size = min(CHUNK, streams - start)
        parts.append(race(scenario, [ErrorProcess(size)], streams=size, per_look=per_look, rng=rng)[0].units)
    return Row(scenario.name, ErrorProcess.name, np.concatenate(parts))


def race_users(*, streams: int, rng: np.random.Generator) -> list[Row]:
    """Sticky users: one unit a user and share (ours), and the same process fed by request."""
    from benchmarks.decisions.engines import POLICY, errors_worse

    name = "sticky users, Zipf, ramp 5-25-50-95%"
    found: dict[str, list[NDArray[np.float64]]] = {"ours": [], "requests": []}
    for start in range(0, streams, 500):
        size = min(500, streams - start)
        by_unit, by_request = errors_worse(POLICY, shape=(size,)), ErrorProcess(size)
        first = {"ours": np.full(size, np.inf), "requests": np.full(size, np.inf)}
        units, requests = np.zeros(size), np.zeros(size)
        for batches, counts in play_users(streams=size, users=800, looks_per_step=6, rng=rng):
            for batch in batches:
                by_unit.update(batch.candidate, batch.champion, batch.pi)
                units += batch.candidate.sum(axis=1)
            requests += counts.units_b
            for key, rejected, so_far in (
                ("ours", by_unit.log_e >= np.log(100), units),
                ("requests", by_request.look(counts), requests),
            ):
                new = rejected & np.isinf(first[key])
                first[key][new] = so_far[new]
        for key, values in first.items():
            found[key].append(values)
    return [
        Row(name, "e-process (ours), one unit a user and share", np.concatenate(found["ours"])),
        Row(name, "the same by request (invalid here)", np.concatenate(found["requests"])),
    ]


@dataclass(frozen=True, slots=True)
class Ending:
    """How releases of one kind end under the whole controller."""

    candidate: str
    promoted: float
    rolled_back: float
    units_to_promote: float
    units_to_roll_back: float
    units_to_roll_back_p90: float


def endings(scale: float) -> list[Ending]:
    """The whole controller at 5%, looked at every 50 candidate units."""
    candidates = (
        ("good", 1.0, slower(1.0)),
        ("2% errors", 2.0, slower(1.0)),
        ("5% errors", 5.0, slower(1.0)),
        ("20% errors", 20.0, slower(1.0)),
        ("latency x1.2", 1.0, slower(1.2)),
        ("latency x1.5", 1.0, slower(1.5)),
        ("tail above p97 doubled", 1.0, doubled_tail),
    )
    found: list[Ending] = []
    for index, (name, ratio, latency) in enumerate(candidates):
        rng = np.random.default_rng(SEED + 100 + index)
        streams = max(int(STREAMS_CONTROLLER * scale), 200)
        controller = Controller(streams, latency)
        back, good = np.full(streams, np.inf), np.full(streams, np.inf)
        played = np.zeros(streams)
        scenario = Scenario(name, constant(0.01), ratio=ratio)
        for counts in play(scenario, streams=streams, looks=UNITS // 50, per_look=50, rng=rng):
            played += 50
            rejected, shown = controller.look(counts, rng)
            open_still = np.isinf(back) & np.isinf(good)
            back[rejected & open_still] = played[rejected & open_still]
            good[shown & open_still] = played[shown & open_still]
            if not (np.isinf(back) & np.isinf(good)).any():
                break
        found.append(
            Ending(
                name,
                float(np.isfinite(good).mean()),
                float(np.isfinite(back).mean()),
                _median(good),
                _median(back),
                _median(back, 0.9),
            )
        )
        print(f"controller: {found[-1]}", flush=True)
    return found


def _median(units: NDArray[np.float64], q: float = 0.5) -> float:
    finite = units[np.isfinite(units)]
    return float(np.quantile(finite, q)) if finite.size else float("inf")


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the streams (1: the published page)"
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page and the plot")
    options = parser.parse_args()
    began = time.perf_counter()

    def streams(number: int) -> int:
        return max(int(number * options.scale), 200)

    nulls: list[Row] = []
    for index, scenario in enumerate((*NULLS, NOISY_HOST)):
        rng = np.random.default_rng(SEED + index)
        nulls.append(race_ours(scenario, streams=streams(STREAMS_OURS), per_look=50, rng=rng))
        size = streams(STREAMS_PEERS)
        nulls.extend(race(scenario, all_rules(size, UNITS // 50, 50), streams=size, per_look=50, rng=rng))
        print(
            f"null: {scenario.name}: {nulls[-8].share:.2%} ({time.perf_counter() - began:.0f} s)", flush=True
        )
    nulls.extend(race_users(streams=streams(STREAMS_OURS), rng=np.random.default_rng(SEED + 50)))
    print(f"null: users: {nulls[-2].share:.2%}, by request {nulls[-1].share:.2%}", flush=True)

    harms: list[Row] = []
    fast: list[Row] = []
    for index, scenario in enumerate(HARMS):
        rng = np.random.default_rng(SEED + 200 + index)
        size = streams(STREAMS_HARM)
        methods: list[Rule] = [ErrorProcess(size), *all_rules(size, UNITS // 50, 50)]
        harms.extend(race(scenario, methods, streams=size, per_look=50, rng=rng))
        fast.append(race_ours(scenario, streams=streams(STREAMS_FAST), per_look=20, rng=rng))
        print(f"harm: {scenario.name}: median {fast[-1].quantile(0.5):g}", flush=True)
    seconds = time.perf_counter() - began
    write_report(options.out, nulls, harms, fast, endings(options.scale), scale=options.scale)
    print(f"{seconds:.0f} s; wrote {options.out / 'decisions-benchmark.md'}")


if __name__ == "__main__":
    main()
