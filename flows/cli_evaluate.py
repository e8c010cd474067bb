"""The command about the offline gate alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_STATUS = {"PASS": 0, "FAIL": 3, "INCONCLUSIVE": 4, "ERROR": 1}


def evaluate(
    endpoint: Endpoint,
    version: Annotated[int, typer.Argument(help="Version of the policy's registered model.", min=1)],
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the report (HTML) here as well.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run only the gate: judge a version against the champion on the held-out rows.

    Nothing is released, rejected or remembered; the evidence goes to an MLflow run of its own. Exit status
    0 for PASS, 3 for FAIL, 4 for INCONCLUSIVE, 1 for ERROR.
    """
    from configs.loading import load_settings
    from flows.cli_output import print_json
    from tasks.evaluation_alone import evaluate_alone

    told = evaluate_alone(load_settings(), endpoint, str(version), tell=_teller(as_json))
    if report is not None:
        report.write_text(told.page)
    if as_json:
        print_json(told.as_dict())
    else:
        _show(told.as_dict())
    raise typer.Exit(_STATUS[told.outcome])


def _show(told: Mapping[str, Any]) -> None:
    from flows.cli_output import show, table, wrapped

    findings = told["verdict"]["findings"]
    columns = ("asked", "verdict", "candidate", "champion", "difference", "rows")
    show(table(columns, ([_cell(found, column) for column in columns] for found in findings)))
    for found in findings:
        if found["outcome"] != "PASS":
            noted = "" if found["blocks"] else " (noted, does not block)"
            typer.echo(f"{found['outcome']}{noted}  {found['metric']}")
            typer.echo(wrapped(found["reason"], indent=4))
    against = f" against v{told['champion']}" if told["champion"] else ", the first champion"
    typer.echo(f"{told['endpoint']} v{told['version']}{against}: {told['verdict']['outcome']}")
    typer.echo(wrapped(told["verdict"]["reason"], indent=4))
    if told["mlflow_url"]:
        typer.echo(f"report: {told['mlflow_url']}")


def _cell(found: Mapping[str, Any], column: str) -> str:
    if column == "asked":
        return str(found["metric"])
    if column == "verdict":
        return str(found["outcome"]) if found["blocks"] or found["outcome"] == "PASS" else "noted"
    if column == "difference":
        low, high = found["low"], found["high"]
        return "" if low is None else f"{low:+.4g} to {high:+.4g}"
    value = found["units" if column == "rows" else column]
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _teller(as_json: bool) -> Any:
    """Progress on a terminal; nothing where a machine reads."""
    import sys

    if as_json or not sys.stderr.isatty():
        return lambda _: None
    return lambda progress: print(f"\r\x1b[K{progress['doing']}", end="", file=sys.stderr, flush=True)
