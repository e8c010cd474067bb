"""The command that rehearses rollbacks."""

from __future__ import annotations

from typing import Annotated

import typer

Endpoint = Annotated[str, typer.Argument(help="A drill endpoint: its policy has a `drill` section.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def drill(
    endpoint: Endpoint,
    fault: Annotated[
        list[str] | None, typer.Option("--fault", help="Which fault; may be repeated. Else whose turn it is.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All faults of the policy, one after the other.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Release a version that is known to be bad, and prove that it is stopped and all is back.

    Under synthetic traffic, on an endpoint that exists for this. Exit status 1 where a drill failed.
    """
    from configs.loading import load_settings
    from flows.cli_output import print_json, show, table
    from tasks.bench import Bench
    from tasks.drill import chosen_faults, run_drill, words

    bench = Bench.open(endpoint, load_settings())
    results = []
    for one in chosen_faults(bench, fault or [], every=every):
        results.append(run_drill(bench, one))
        if not as_json:
            typer.echo(words(results[-1]))
    if as_json:
        print_json([result.as_dict() for result in results])
    elif len(results) > 1:
        rows = [
            (
                one.fault,
                one.state,
                one.stage,
                f"{one.stopped_s} s",
                f"{one.traffic_s} s",
                one.failed,
                one.passed,
            )
            for one in results
        ]
        columns = ("fault", "ended", "at", "stopped after", "last request after", "failed requests", "passed")
        show(table(columns, rows))
    raise typer.Exit(0 if all(result.passed for result in results) else 1)
