"""The page: tables and one plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.decisions.__main__ import Ending
    from benchmarks.decisions.rows import Row


@dataclass(frozen=True, slots=True)
class Results:
    """What the page shows.

    `users` are sticky ones, `latency` nulls of our latency family, `periods` nulls from counts of whole
    periods, `times` races on answer times (nulls first), `fast` harms looked at often.
    """

    nulls: Sequence[Row]
    users: Sequence[Row]
    latency: Sequence[Row]
    periods: Sequence[Row]
    times: Sequence[Row]
    harms: Sequence[Row]
    fast: Sequence[Row]
    endings: Sequence[Ending]


DECLARED = """Seed {seed} was committed before anything
ran on it, and no weight, bet or setting was changed since; the races on answer times, on whole periods and of
the peers on sticky users were added before they ran, when the other races had run already."""
OTHER = """Seed {seed} is a development seed, not the declared one: do not publish this page."""
INTRO = """# Decisions, measured

Written by `make bench-decisions`{scale}; do not edit. {seed} The weights of the error bets were chosen by
simulation on other seeds. False rollback is bounded by proof, for any weights; this page shows how much of
the bound is used. Base error rate 1%, share 5% unless said, up to 20,000 candidate units, looked at every
50 of them.
The rules that judge windows see windows of 200. Peers are re-implemented from
their descriptions (`benchmarks/decisions/peers.py`), see errors only, and run with the settings named.

## Good versions that were rolled back

No difference between the versions; every rollback is false. In brackets the one-sided 99% upper
bound. Ours promises at most 1%.
"""
NOISY = """
One noisy candidate host breaks every test that compares versions: the candidate's requests share what happens
to its host. No arithmetic on the counts can tell a bad host from a bad version. Put both versions on the same
hosts, or run at least 3 candidate replicas.
"""


def write_report(folder: Path, results: Results, *, scale: float, seed: int, is_declared: bool) -> None:
    """Write decisions-benchmark.md and .svg."""
    folder.mkdir(parents=True, exist_ok=True)
    note = "" if scale >= 1 else f" with {scale:g} of the streams"
    said = (DECLARED if is_declared else OTHER).format(seed=seed)
    lines = [
        INTRO.format(scale=note, seed=said),
        *_nulls(results.nulls),
        "",
        NOISY,
        *_users(results.users),
        *_only_ours(results),
        *_harms(results.harms),
        *_fast(results.fast),
        *_times(results.times),
        *_endings(results.endings),
        *_targets(results),
    ]
    lines.append("\n![Share of 2% versions rolled back by candidate units](decisions-benchmark.svg)\n")
    (folder / "decisions-benchmark.md").write_text("\n".join(lines))
    _plot(folder / "decisions-benchmark.svg", [row for row in results.harms if row.scenario.startswith("2 ")])


def _targets(results: Results) -> list[str]:
    """The numbers that were to be reached, each with what came out."""
    nulls = (*results.nulls, *results.users, *results.latency, *results.periods)
    ours = [row for row in nulls if row.method.startswith("e-process")]
    worst = max((row for row in ours if "noisy" not in row.scenario), key=lambda row: row.upper)
    fast = {row.scenario.split()[0]: row.quantile(0.5) for row in results.fast}
    ends = {one.candidate: one for one in results.endings}
    good = ends["good"]
    checks: list[tuple[str, float, float, str]] = [
        (f"false rollback, 99% upper bound, worst scenario ({worst.scenario})", worst.upper, 0.012, "{:.2%}"),
        ("errors alone, every 20: 2% against 1%, median", fast["2"], 1350, "{:,.0f}"),
        ("errors alone, every 20: 5%, median", fast["5"], 200, "{:,.0f}"),
        ("errors alone, every 20: 20%, median", fast["20"], 20, "{:,.0f}"),
        ("controller, every 50: 2%, median", ends["2% errors"].units_to_roll_back, 1650, "{:,.0f}"),
        (
            "controller: tail doubled, median",
            ends["tail above p97 doubled"].units_to_roll_back,
            400,
            "{:,.0f}",
        ),
        ("controller: good versions not promoted", 1 - good.promoted, 0.005, "{:.2%}"),
        ("controller: good, median to promote", good.units_to_promote, 1500, "{:,.0f}"),
    ]
    lines = ["", "## What was to be reached", "", "| | at most | found | |", "|---|---|---|---|"]
    for what, most, found, form in ((what, most, found, form) for what, found, most, form in checks):
        said = "reached" if found <= most + 1e-9 else "**not reached**"
        lines.append(f"| {what} | {form.format(most)} | {form.format(found)} | {said} |")
    return lines


def _nulls(rows: Sequence[Row]) -> list[str]:
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    lines = ["| method | " + " | ".join(scenarios) + " |", "|---|" + "---|" * len(scenarios)]
    for method in dict.fromkeys(row.method for row in rows):
        cells = [
            _share(row) for name in scenarios for row in rows if (row.method, row.scenario) == (method, name)
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    streams = sorted({row.units.size for row in rows})
    return [*lines, "", f"Streams a cell: {streams[-1]:,} (ours), {streams[0]:,} (peers)."]


def _users(rows: Sequence[Row]) -> list[str]:
    return [
        "",
        f"### {rows[0].scenario[0].upper()}{rows[0].scenario[1:]}",
        "",
        "Users differ in their error rates, and a user's side is no longer random when they come back: the",
        "unit of evidence is the user. The peers see requests, as they do; a window is a look here.",
        "",
        *_shares(rows),
    ]


def _only_ours(results: Results) -> list[str]:
    return [
        "",
        "### Answer times, and platforms that only count",
        "",
        "The latency family alone, with thresholds from past times (500 of them for the Pareto law, 2,000",
        "else); and whole releases judged from counts of whole periods (`evals/periods.py`): 24 periods of",
        "300 requests on a ramp of 5, 25, 50, 95%, errors from 0.5% to 2%, times that swing by half.",
        "",
        *_shares([*results.latency, *results.periods]),
    ]


def _shares(rows: Sequence[Row]) -> list[str]:
    lines = ["| | method | streams | rolled back |", "|---|---|---|---|"]
    return lines + [f"| {row.scenario} | {row.method} | {row.units.size:,} | {_share(row)} |" for row in rows]


def _times(rows: Sequence[Row]) -> list[str]:
    from benchmarks.decisions.times import NULLS, SCENARIOS

    nulls = {one.name for one in SCENARIOS[:NULLS]}
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    sizes = {name: next(row.units.size for row in rows if row.scenario == name) for name in scenarios}
    lines = [
        "",
        "## Answer times: good versions rolled back, and slow ones",
        "",
        f"All methods on the same requests, {max(sizes.values()):,} streams a null, {min(sizes.values()):,}",
        "a harm, share 5%, up to 20,000 candidate requests. Nulls: share rolled back (99% bound). Harms:",
        "median / P90 candidate requests until rollback, and the power where it is under 99%.",
        "",
        "| method | " + " | ".join(scenarios) + " |",
        "|---|" + "---|" * len(scenarios),
    ]
    for method in dict.fromkeys(row.method for row in rows):
        of_method = {row.scenario: row for row in rows if row.method == method}
        cells = [_share(of_method[name]) if name in nulls else _until(of_method[name]) for name in scenarios]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _until(row: Row) -> str:
    power = "" if row.share >= 0.99 else f", {row.share:.0%}"
    return f"{_units(row.quantile(0.5))} / {_units(row.quantile(0.9))}{power}"


def _share(row: Row) -> str:
    return f"{row.share:.2%} ({row.upper:.2%})"


def _harms(rows: Sequence[Row]) -> list[str]:
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    lines = [
        "## Bad versions: candidate units until rollback",
        "",
        "Median / P90 over all streams; a percentage is the power where it is under 99%.",
        "",
        "| method | " + " | ".join(scenarios) + " |",
        "|---|" + "---|" * len(scenarios),
    ]
    for method in dict.fromkeys(row.method for row in rows):
        of_method = {row.scenario: row for row in rows if row.method == method}
        cells = [_until(of_method[name]) for name in scenarios]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _units(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "never"


def _fast(rows: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "Ours, errors alone, looked at every 20 candidate units:",
        "",
        "| harm | median | P90 | power |",
        "|---|---|---|---|",
    ]
    for row in rows:
        numbers = f"{_units(row.quantile(0.5))} | {_units(row.quantile(0.9))} | {row.share:.1%}"
        lines.append(f"| {row.scenario} | {numbers} |")
    return lines


def _endings(rows: Sequence[Ending]) -> list[str]:
    lines = [
        "",
        "## The whole controller",
        "",
        "Errors and latency together at 5%, looked at every 50 candidate units; it promotes at margins of",
        "+1 point of errors and +20% on p50, p95 and p99. Units are the candidate's.",
        "",
        "| candidate | promoted | rolled back | median to promote | median to roll back | P90 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        units = (row.units_to_promote, row.units_to_roll_back, row.units_to_roll_back_p90)
        cells = " | ".join(_units(value).replace("never", "-") for value in units)
        lines.append(f"| {row.candidate} | {row.promoted:.2%} | {row.rolled_back:.2%} | {cells} |")
    return lines


def _plot(path: Path, rows: Sequence[Row]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "interlock"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for row in rows:
        at = np.arange(0, 8001, 50)
        shares = (row.units[:, None] <= at).mean(axis=0)
        ours = row.method.startswith("e-process")
        axes.step(at, shares, where="post", label=row.method, lw=2.5 if ours else 1.2)
    axes.set(xlabel="candidate units", ylabel="share rolled back", xlim=(0, 8000), ylim=(0, 1.02))
    axes.set_title("Candidate with 2% errors against 1%")
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
