"""`make bench-gateway`: the gateway beside others on one upstream, and how fast a rollback is.

Every subject is measured in every round, one after the other, so that a busy machine slows all of
them alike; ratios are medians over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.gateway.clients import Measured, has_wrk, measure
from benchmarks.gateway.rollbacks import Result, measure_rollbacks
from benchmarks.gateway.subjects import Lineup, lineup

_CPU_US_MAX = 27.0
_RATIO_MIN = 0.37
_OURS = "Interlock's gateway"
_BARE = "HAProxy, bare"


@dataclass(slots=True)
class Runs:
    """One subject's rounds."""

    measured: list[Measured] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def rates(self) -> list[float]:
        """Requests a second, by round."""
        return [one.requests / one.seconds for one in self.measured]


def main(arguments: list[str] | None = None) -> int:
    """Run it all and print the tables. The exit status is 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rollbacks", type=int, default=50)
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a configuration of HAProxy to measure in the same rounds; @PORT@ (its own), @UPSTREAM@ (the "
        "server's) and @FOLDER@ (the file's) are filled in; it is asked for /flights/invocations with the "
        "key `bench`",
    )
    options = parser.parse_args(arguments)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as folder:
        with lineup(Path(folder), options.beside) as line:
            runs = _rounds(line, Path(folder), options, console)
        failures = _print_throughput(line, runs, console)
    if options.rollbacks:
        with tempfile.TemporaryDirectory(prefix="interlock-bench-") as folder:
            result = measure_rollbacks(Path(folder), options.rollbacks)
        failures += _print_rollbacks(result, console)
    return 1 if failures else 0


def _rounds(line: Lineup, folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Runs]:
    runs = {subject.name: Runs() for subject in line.subjects}
    for subject in line.subjects:
        measure(subject.target, seconds=1, connections=options.connections, folder=folder)
    for number in range(options.rounds):
        for subject in line.subjects:
            before = subject.cpu_s()
            one = measure(
                subject.target, seconds=options.seconds, connections=options.connections, folder=folder
            )
            runs[subject.name].measured.append(one)
            runs[subject.name].cpu_us.append((subject.cpu_s() - before) / max(one.requests, 1) * 1e6)
        console.print(f"round {number + 1} of {options.rounds} done", style="dim")
    return runs


def _print_throughput(line: Lineup, runs: dict[str, Runs], console: Console) -> int:
    client = "wrk" if has_wrk() else "our own client: it is slower than wrk, which flatters every gateway"
    table = Table(title=f"POST of 1 KB, medians of {len(runs['direct'].measured)} rounds ({client})")
    for heading in (
        "",
        "requests/s",
        "of direct",
        "p50 ms",
        "p99 ms",
        "CPU µs/request",
        "of bare",
        "failures",
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    direct = runs["direct"].rates()
    ratios: dict[str, float] = {}
    for name, run in runs.items():
        rates = run.rates()
        ratios[name] = statistics.median(rate / base for rate, base in zip(rates, direct, strict=True))
        table.add_row(
            name,
            f"{statistics.median(rates):,.0f}",
            f"{ratios[name]:.2f}",
            f"{statistics.median(one.p50_ms for one in run.measured):.2f}",
            f"{statistics.median(one.p99_ms for one in run.measured):.2f}",
            f"{statistics.median(run.cpu_us):.1f}" if name != "direct" else "",
            f"{_of_bare(run, runs):.2f}" if name != "direct" else "",
            str(sum(one.failures for one in run.measured)),
        )
    console.print(table)
    for skipped in line.skipped:
        console.print(skipped)
    cpu_us = statistics.median(runs[_OURS].cpu_us)
    console.print(
        f"{_OURS}: {cpu_us:.1f} µs CPU a request (to reach: at most {_CPU_US_MAX:.0f}), "
        f"{ratios[_OURS]:.2f} of direct (to reach: at least {_RATIO_MIN}), "
        f"{_of_bare(runs[_OURS], runs):.2f} times bare HAProxy's CPU"
    )
    return sum(one.failures for run in runs.values() for one in run.measured)


def _of_bare(run: Runs, runs: dict[str, Runs]) -> float:
    """CPU a request as a multiple of bare HAProxy's in the same round: what another machine can compare."""
    return statistics.median(own / bare for own, bare in zip(run.cpu_us, runs[_BARE].cpu_us, strict=True))


def _print_rollbacks(result: Result, console: Console) -> int:
    table = Table(title=f"{len(result.rollbacks)} rollbacks of a 50% canary, 300 requests/s of 10 ms each")
    for heading in ("from the decision, ms", "p50", "p90", "p99", "max"):
        table.add_column(heading, justify="left" if heading.startswith("from") else "right")
    for name, values in (
        ("the gateway confirms", [one.answered_ms for one in result.rollbacks]),
        ("the candidate's last answer", [one.last_ms for one in result.rollbacks]),
    ):
        ranked = sorted(values)
        cells = [ranked[min(len(ranked) - 1, round(q * (len(ranked) - 1)))] for q in (0.5, 0.9, 0.99, 1)]
        table.add_row(name, *(f"{cell:.1f}" for cell in cells))
    console.print(table)
    late = sum(one.late for one in result.rollbacks)
    console.print(
        f"{result.requests:,} requests, {result.failures} failed; "
        f"{late} sent after the confirmation still reached the candidate"
    )
    return result.failures + late


if __name__ == "__main__":
    sys.exit(main())
