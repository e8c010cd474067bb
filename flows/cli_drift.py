"""The command about drift."""

from __future__ import annotations

from typing import Annotated

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def drift(
    endpoint: Endpoint,
    again: Annotated[
        bool, typer.Option("--again", help="Judge the newest window although it was judged before.")
    ] = False,
    look: Annotated[
        bool, typer.Option("--look", help="Only look: nothing is held, alerted, asked for or remembered.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge the newest whole window of live requests for drift.

    The scheduled flow does the same, once a window.
    """
    from configs.loading import load_settings
    from flows.cli_output import print_json, show, table
    from tasks.bench import Bench
    from tasks.drift import look_at_window, newest_window, policy_of
    from tasks.drift_actions import DriftReport, check_drift, table_rows

    bench = Bench.open(endpoint, load_settings())
    report = (
        DriftReport(look_at_window(bench, newest_window(policy_of(bench), bench.clock())), ())
        if look
        else check_drift(bench, again=again)
    )
    if report is None:
        said = (
            f"{endpoint}: the newest whole window was judged before. Next: interlock drift {endpoint} --again"
        )
        print_json({"endpoint": endpoint, "judged": "before"}) if as_json else typer.echo(said)
        return
    if as_json:
        print_json(report.as_dict())
        return
    window, verdict = report.window, report.window.verdict
    columns = ("question", "column", "slice", "measured", "value", "threshold", "p", "flagged")
    rows = [[row[column] for column in columns] for row in table_rows(verdict.checks)]
    if rows:
        show(table(columns, rows[:25]))
    typer.echo(f"{endpoint} v{window.version}: {verdict.outcome}, {verdict.reason}")
    typer.echo(f"decision: {', '.join(verdict.decision.actions)} ({verdict.decision.row})")
    for line in (*report.done, *verdict.notes):
        typer.echo(f"  {line}")
    if report.mlflow_url:
        typer.echo(f"report: {report.mlflow_url}")
