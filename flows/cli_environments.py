"""Commands about environments: what differs between them, and what a version bears in staging."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
Environment = Annotated[str, typer.Argument(help="production, staging or development.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def diff(endpoint: Endpoint, left: Environment, right: Environment, as_json: AsJson = False) -> None:
    """Show every difference between two environments of an endpoint."""
    from configs.loading import load_settings
    from flows.cli_output import print_json, show, table
    from tasks.environments import compare

    found = compare(load_settings(), endpoint, left, right)
    if as_json:
        print_json({key: {left: one, right: other} for key, (one, other) in found.items()})
        return
    rows = [(key, _words(one), _words(other)) for key, (one, other) in found.items()]
    show(table(("key", left, right), rows))


def load_test(
    endpoint: Endpoint,
    version: Annotated[
        int | None, typer.Argument(help="Version to test; the champion without it.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find out what a version bears, on the staging endpoint.

    Requests come when they are due, whatever the answers. Exit status 3 where it breaks a budget at the
    expected rate, 4 where that could not be found out.
    """
    from dataclasses import asdict

    from configs.loading import load_settings
    from flows.cli_output import print_json, show, table
    from tasks.failures import ExitStatus
    from tasks.staging import load_by_hand

    rows: list[tuple[Any, ...]] = []

    def note(number: int, step: Any, verdict: Any) -> None:
        del number
        rows.append(_step_row(step, verdict))
        if not as_json:
            typer.echo(f"{verdict.outcome}: {verdict.reason}")

    rehearsed = load_by_hand(load_settings(), endpoint, str(version or ""), note)
    verdict = rehearsed.verdict
    if as_json:
        steps = [step.as_dict() for step in rehearsed.steps]
        print_json({"endpoint": endpoint, "verdict": asdict(verdict), "steps": steps})
    else:
        show(table(("rate/s", "sent/s", "p50 ms", "p95 ms", "p99 ms", "failed", "at once", "verdict"), rows))
        typer.echo(f"{verdict.outcome}: {verdict.reason}")
    if not verdict.passed:
        raise typer.Exit(int(ExitStatus.REJECTED if verdict.failed else ExitStatus.UNFINISHED))


def _step_row(step: Any, verdict: Any) -> tuple[Any, ...]:
    numbers = (step.rate, step.sent_rate, step.p50, step.p95, step.p99)
    failed = f"{step.failed} of {step.requests}"
    return (*(f"{number:.4g}" for number in numbers), failed, f"{step.in_flight:g}", verdict.outcome)


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(str(one) for one in value) if isinstance(value, list) else str(value)
