"""`make bench-decisions`: who rolls back good versions, and after how many requests bad ones go.

The seed was committed before anything ran on it, and after the last change to a weight: part i uses
SEED + i. `--scale 0.1` runs a tenth of the streams, `--seed` other ones (for development; the page says
so). Every part is kept in benchmarks/decisions/.cache and not run again; delete the folder to start
anew. Writes docs/decisions-benchmark.md and .svg.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.decisions import times
from benchmarks.decisions.engines import Controller, ErrorProcess, LatencyProcess
from benchmarks.decisions.peers import WINDOW, Rule, all_rules
from benchmarks.decisions.periods import race_periods
from benchmarks.decisions.report import Results, write_report
from benchmarks.decisions.rows import Row
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

SEED = 20_261_126_417
CACHE = Path(__file__).parent / ".cache"
UNITS = 20_000
STREAMS_OURS, STREAMS_PEERS, STREAMS_HARM, STREAMS_CONTROLLER = 20_000, 2_000, 2_000, 4_000
STREAMS_FAST = 10_000
STREAMS_TIMES_HARM = 1_000
CHUNK = 5_000
USERS_CHUNK, USERS_LOOKS = 500, 24


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
    """Sticky users: one unit a user and share (ours), and by request the same process and the peers.

    A window of the peers is a look: 20 to 380 requests of the candidate. They see the first streams only.
    """
    from benchmarks.decisions.engines import POLICY, errors_worse

    name = "sticky users, Zipf, ramp 5-25-50-95%"
    ours, invalid = "e-process (ours), one unit a user and share", "the same by request (invalid here)"
    found: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, streams, USERS_CHUNK):
        size = min(USERS_CHUNK, streams - start)
        by_unit, by_request = errors_worse(POLICY, shape=(size,)), ErrorProcess(size)
        peers = all_rules(size, USERS_LOOKS, WINDOW) if start < max(STREAMS_PEERS, USERS_CHUNK) else []
        first = {key: np.full(size, np.inf) for key in (ours, invalid, *(peer.name for peer in peers))}
        units, requests = np.zeros(size), np.zeros(size)
        for batches, counts in play_users(streams=size, users=800, looks_per_step=USERS_LOOKS // 4, rng=rng):
            for batch in batches:
                by_unit.update(batch.candidate, batch.champion, batch.pi)
                units += batch.candidate.sum(axis=1)
            requests += counts.units_b
            seen = [(ours, by_unit.log_e >= np.log(100), units), (invalid, by_request.look(counts), requests)]
            seen += [(peer.name, peer.look(counts), requests) for peer in peers]
            for key, rejected, so_far in seen:
                new = rejected & np.isinf(first[key])
                first[key][new] = so_far[new]
        for key, values in first.items():
            found.setdefault(key, []).append(values)
    return [Row(name, key, np.concatenate(values)) for key, values in found.items()]


def race_heavy_tails(*, streams: int, rng: np.random.Generator) -> list[Row]:
    """Times with infinite variance, thresholds from 500 past ones: the latency family alone."""
    process, played = LatencyProcess(streams, rng), 0.0
    first = np.full(streams, np.inf)
    scenario = Scenario("heavy tails (Pareto 1.1)", constant(0.01))
    for counts in play(scenario, streams=streams, looks=UNITS // 50, per_look=50, rng=rng):
        played += 50
        first[process.look(counts, rng) & np.isinf(first)] = played
    return [Row(scenario.name, LatencyProcess.name, first)]


@dataclass(frozen=True, slots=True)
class Ending:
    """How releases of one kind end under the whole controller."""

    candidate: str
    promoted: float
    rolled_back: float
    units_to_promote: float
    units_to_roll_back: float
    units_to_roll_back_p90: float


CANDIDATES = {
    "good": (1.0, slower(1.0)),
    "2% errors": (2.0, slower(1.0)),
    "5% errors": (5.0, slower(1.0)),
    "20% errors": (20.0, slower(1.0)),
    "latency x1.2": (1.0, slower(1.2)),
    "latency x1.5": (1.0, slower(1.5)),
    "tail above p97 doubled": (1.0, doubled_tail),
}


def race_controller(name: str, *, streams: int, rng: np.random.Generator) -> list[Row]:
    """The whole controller at 5%, looked at every 50 candidate units: until promotion, and rollback."""
    ratio, latency = CANDIDATES[name]
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
    return [Row(name, "promoted", good), Row(name, "rolled back", back)]


def ending(promoted: Row, rolled_back: Row) -> Ending:
    """In numbers."""
    return Ending(
        promoted.scenario,
        promoted.share,
        rolled_back.share,
        _median(promoted.units),
        _median(rolled_back.units),
        _median(rolled_back.units, 0.9),
    )


def _median(units: NDArray[np.float64], q: float = 0.5) -> float:
    finite = units[np.isfinite(units)]
    return float(np.quantile(finite, q)) if finite.size else float("inf")


# The parts ----------------------------------------------------------------------------------------


def _null_ours(index: int, scenario: Scenario, *, streams: int, rng: np.random.Generator) -> list[Row]:
    return [race_ours(scenario, streams=streams, per_look=50, rng=rng)]


def _peers(index: int, scenario: Scenario, *, streams: int, rng: np.random.Generator) -> list[Row]:
    return race(scenario, all_rules(streams, UNITS // 50, 50), streams=streams, per_look=50, rng=rng)


def _harm(index: int, scenario: Scenario, *, streams: int, rng: np.random.Generator) -> list[Row]:
    methods: list[Rule] = [ErrorProcess(streams), *all_rules(streams, UNITS // 50, 50)]
    return race(scenario, methods, streams=streams, per_look=50, rng=rng)


def _fast(index: int, scenario: Scenario, *, streams: int, rng: np.random.Generator) -> list[Row]:
    return [race_ours(scenario, streams=streams, per_look=20, rng=rng)]


def parts() -> dict[str, tuple[int, int, Callable[..., list[Row]]]]:
    """Every part by name: what is added to the seed, streams at full scale, and what runs."""
    found: dict[str, tuple[int, int, Callable[..., list[Row]]]] = {
        "users": (50, STREAMS_OURS, race_users),
        "heavy-tails": (51, STREAMS_OURS, race_heavy_tails),
        "periods": (52, STREAMS_OURS, race_periods),
    }
    for index, scenario in enumerate((*NULLS, NOISY_HOST)):
        found[f"null-{index}"] = (index, STREAMS_OURS, partial(_null_ours, index, scenario))
        found[f"peers-{index}"] = (20 + index, STREAMS_PEERS, partial(_peers, index, scenario))
    for index, scenario in enumerate(HARMS):
        found[f"harm-{index}"] = (200 + index, STREAMS_HARM, partial(_harm, index, scenario))
        found[f"fast-{index}"] = (220 + index, STREAMS_FAST, partial(_fast, index, scenario))
    for index in range(len(times.SCENARIOS)):
        full = STREAMS_PEERS if index < times.NULLS else STREAMS_TIMES_HARM
        found[f"times-{index}"] = (300 + index, full, partial(times.race_times, index, units=UNITS))
    for index in range(times.LOGNORMAL_NULLS):
        race_null = partial(times.race_ours, index, units=UNITS)
        found[f"alike-{index}"] = (320 + index, STREAMS_OURS, race_null)
    for index, name in enumerate(CANDIDATES):
        found[f"controller-{index}"] = (100 + index, STREAMS_CONTROLLER, partial(race_controller, name))
    return found


def run_part(name: str, seed: int, scale: float) -> list[Row]:
    """A part's rows, from the cache where it ran before."""
    add, full, race_part = parts()[name]
    streams = max(int(full * scale), 200)
    path = CACHE / f"{seed}-{streams}-{name}.npz"
    if not path.exists():
        began = time.perf_counter()
        rows = race_part(streams=streams, rng=np.random.default_rng(seed + add))
        CACHE.mkdir(exist_ok=True)
        kept = path.with_suffix(f".{os.getpid()}.npz")
        arrays = {f"{row.scenario}|{row.method}": row.units for row in rows}
        np.savez(kept, allow_pickle=False, **arrays)
        kept.rename(path)
        shares = ", ".join(f"{row.share:.2%}" for row in rows[:2])
        print(f"{name} ({rows[0].scenario}): {shares}; {time.perf_counter() - began:.0f} s", flush=True)
    with np.load(path) as kept_rows:
        named = {key: key.partition("|") for key in kept_rows.files}
        return [Row(scenario, method, kept_rows[key]) for key, (scenario, _, method) in named.items()]


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the streams (1: the published page)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="another seed, for development")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page and the plot")
    options = parser.parse_args()
    began = time.perf_counter()
    with ProcessPoolExecutor(options.jobs) as pool:
        running = {name: pool.submit(run_part, name, options.seed, options.scale) for name in parts()}
        done = {name: future.result() for name, future in running.items()}

    def of(kind: str) -> list[Row]:
        return [row for name, rows in done.items() if name.startswith(kind) for row in rows]

    results = Results(
        [*of("null-"), *of("peers-")],
        of("users"),
        [*of("heavy-tails"), *of("alike-")],
        of("periods"),
        of("times-"),
        of("harm-"),
        of("fast-"),
        [ending(*rows) for name, rows in done.items() if name.startswith("controller-")],
    )
    is_declared = options.seed == SEED
    write_report(options.out, results, scale=options.scale, seed=options.seed, is_declared=is_declared)
    print(f"{time.perf_counter() - began:.0f} s; wrote {options.out / 'decisions-benchmark.md'}")


if __name__ == "__main__":
    main()
