"""The command about labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SHOWN = 24


def labels(
    endpoint: Endpoint,
    file: Annotated[
        Path | None, typer.Argument(help="Parquet or CSV with request ids and labels; none: only look.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take labels that came later, and show true performance over time.

    Taking a file again changes nothing. Exit status 1 where labels conflict with what is stored.
    """
    from dataclasses import asdict

    from configs.loading import load_settings
    from flows.cli_output import moment, print_json, show, table
    from tasks.bench import Bench
    from tasks.labels import performance, take_file, words

    bench = Bench.open(endpoint, load_settings())
    report = None if file is None else take_file(bench, file)
    found = performance(bench)[-_SHOWN:]
    if as_json:
        print_json({"report": report and report.as_dict(), "performance": [asdict(one) for one in found]})
    else:
        rows = [
            (
                moment(one.starts_at),
                f"v{one.version}",
                one.labels,
                f"{one.score:.4f}",
                f"{one.delay_s / 60:.0f} min",
            )
            for one in found
        ]
        if rows:
            show(table(("requests from", "version", "labels", "mean score", "label delay"), rows))
        if report is not None:
            typer.echo(words(report))
        elif not rows:
            typer.echo(f"{endpoint} has no labels yet. Next: interlock labels {endpoint} FILE")
    raise typer.Exit(1 if report is not None and report.conflicts else 0)
