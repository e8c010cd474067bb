"""The command that shows what a policy does before anyone trusts it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_COLUMNS = (
    "candidate",
    "releases",
    "promoted",
    "rolled back",
    "undecided",
    "until rollback",
    "exposed requests",
    "until promotion",
)


def simulate(
    policy: Annotated[str, typer.Argument(help="A policy file, or the name of an endpoint.")],
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests a second; without it the access log says.", min=0)
    ] = None,
    error_rate: Annotated[
        float, typer.Option("--error-rate", help="With --rate: the champion's failures.", min=0, max=1)
    ] = 0.01,
    p50: Annotated[float, typer.Option("--p50", help="With --rate: median service time, ms.", min=0)] = 50,
    p99: Annotated[float, typer.Option("--p99", help="With --rate: its 99% quantile, ms.", min=0)] = 250,
    users: Annotated[
        float, typer.Option("--users", help="With --rate: distinct users in an hour; 0 names none.", min=0)
    ] = 0,
    errors: Annotated[
        str, typer.Option("--errors", help="Harms: more errors, in percentage points.")
    ] = "1,4,19",
    tail: Annotated[str, typer.Option("--tail", help="Harms: times above the p95, multiplied.")] = "2,4",
    slower: Annotated[str, typer.Option("--slower", help="Harms: all times, multiplied.")] = "1.5",
    releases: Annotated[
        int, typer.Option("--releases", help="Releases of each; four times as many good ones.", min=1)
    ] = 100,
    horizon: Annotated[
        float | None, typer.Option("--horizon", help="Longest release in seconds (default: 4 ramps).", min=1)
    ] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", help="After this no more releases are begun.", min=0)
    ] = 2,
    seed: Annotated[int, typer.Option("--seed", help="The same seed plays the same releases.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it: a file .png, .svg or .html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Play releases of good and bad versions under a policy.

    With the judge and the ramp of a real one, on the endpoint's own traffic or on traffic as given.
    """
    harms = [_numbers(errors, "--errors"), _numbers(tail, "--tail"), _numbers(slower, "--slower")]
    if plot is not None and plot.suffix not in (".html", ".png", ".svg"):
        raise typer.BadParameter(f"--plot {plot}: end its name in .png, .svg or .html")
    if plot is not None and not plot.parent.is_dir():
        raise typer.BadParameter(f"--plot {plot}: there is no folder {plot.parent}. Next: make it first")
    if rate is not None and (rate <= 0 or not 0 < p50 <= p99):
        raise typer.BadParameter("--rate must be above 0, and --p50 above 0 and at most --p99")
    from configs.loading import load_settings
    from flows.cli_output import print_json
    from tasks.simulating import Given, changes, policy_of, traffic_of
    from tasks.simulating import simulate as play_all

    settings = load_settings()
    found = policy_of(settings, policy)
    given = None if rate is None else Given(rate, error_rate, p50, p99, users)
    traffic, source = traffic_of(found, settings, given, seed)
    with _progress(quiet=as_json) as tell:
        made = play_all(
            found,
            traffic,
            source,
            changes(*harms),
            plays=releases,
            seed=seed,
            until_s=horizon,
            limit_s=60 * minutes,
            tell=tell,
        )
    if as_json:
        print_json(made.as_dict())
    else:
        _show(made.as_dict())
    if plot is not None:
        from tasks.simulation_plot import write_plot

        write_plot(made, plot)
    if not as_json:
        typer.echo(f"plot: {plot}" if plot else "")


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise typer.BadParameter(f"{option} {text!r}: numbers, with commas between them") from error


@contextmanager
def _progress(*, quiet: bool) -> Generator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing where a machine reads."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        playing = bar.add_task("playing releases", total=None)
        yield lambda done, total: bar.update(playing, completed=done, total=total)


def _show(made: Mapping[str, Any]) -> None:
    from flows.cli_output import show, table

    has = made["traffic"]
    typer.echo(
        f"{made['endpoint']}, {made['source']}: {has['requests_per_s']:.3g} requests/s, "
        f"{has['error_rate']:.2%} errors, p50 {has['p50_ms']:.3g} ms, p95 {has['p95_ms']:.3g} ms, "
        f"p99 {has['p99_ms']:.3g} ms, {has['users']:.0f} users; seed {made['seed']}"
    )
    show(table(_COLUMNS, (_row(row) for row in made["rows"])))
    good = made["rows"][0]
    typer.echo(
        f"False rollback: {good['rolled_back']:.2%} of {good['plays']} good versions, at most "
        f"{good['rolled_back_at_most']:.2%} with 95% confidence; the policy allows "
        f"{made['false_rollback']:.2%}. "
        "Where two times or numbers stand: median / 90%."
    )
    typer.echo("Expected, step by step: " + "; ".join(made["plan"]))
    for note in made["notes"]:
        typer.echo(f"note: {note}")


def _row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        str(row["plays"]),
        f"{row['promoted']:.1%}",
        f"{row['rolled_back']:.1%}",
        f"{row['undecided']:.1%}",
        _pair(row["seconds"], _seconds),
        _pair(row["exposed"], lambda value: f"{value:,.0f}"),
        _pair(row["promoted_s"], _seconds),
    ]


def _pair(values: tuple[float, float] | None, words: Callable[[float], str]) -> str:
    return "" if values is None else " / ".join(words(value) for value in values)


def _seconds(value: float) -> str:
    from flows.cli_output import duration

    return duration(value) or "0 s"
