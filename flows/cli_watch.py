"""Commands about what serves: watch it, take it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def watch(
    endpoint: Endpoint,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Test the service levels of what serves, look by look.

    Harm that the previous version does not suffer is rolled back. Exit status 1 where there was harm, 6
    where it could not look. Goes on until Ctrl-C; the scheduled watch does the same every minute.
    """
    from dataclasses import asdict

    from configs.loading import load_settings
    from flows.cli_output import print_json_line
    from tasks.control import watch as looks

    outcomes: set[str] = set()
    try:
        for report in looks(load_settings(), endpoint, run_s=0 if once else 1e9):
            outcomes = {*(outcomes - {"ERROR"}), report.outcome}
            if as_json:
                print_json_line(asdict(report))
                continue
            typer.echo(_look_words(asdict(report)))
            if report.rollback is not None:
                typer.echo(rollback_words(asdict(report.rollback)))
    except KeyboardInterrupt:
        pass
    raise typer.Exit(1 if "FAIL" in outcomes else 6 if "ERROR" in outcomes else 0)


def rollback(
    endpoint: Endpoint,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the trail.")],
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Although the signatures say that clients would notice, and without asking the previous "
            "version recent requests first.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go back to the version before, now.

    From an open release to its champion, else to the previous version. Needs neither Prefect nor MLflow.
    """
    from dataclasses import asdict

    from configs.loading import load_settings
    from flows.cli_output import print_json, who
    from tasks.control import roll_back

    report = roll_back(load_settings(), endpoint, reason=reason, who=who(), force=force)
    if as_json:
        print_json(asdict(report))
    else:
        typer.echo(rollback_words(asdict(report)))


def rollback_words(report: Mapping[str, Any]) -> str:
    """What a rollback did, on one screen."""
    from flows.cli_output import wrapped

    was, now, endpoint = report["was"], report["now"], report["endpoint"]
    if report["is_old"]:
        return (
            f"{endpoint}: version {was} is off already and version {now} serves; nothing was changed.\n"
            f"To go further back: interlock release {endpoint} VERSION"
        )
    start = f"started first, in {report['cold_s']:.1f} s" if report["cold_s"] else "it was running"
    lines = {
        "traffic": f"moved and read back in {report['traffic_ms']:.0f} ms",
        "why": report["reason"],
        "who": report["who"],
        f"version {now}": "; ".join(filter(None, (start, report["proof"], report["unchecked"]))),
        "registry": f"pending: {report['pending']}" if report["pending"] else "aliases and tags are set",
        "next": f"interlock history {endpoint} --audit. Version {was} is released again only with --again",
    }
    shown = [f"{endpoint}: version {was} is off, version {now} serves."]
    for name, text in lines.items():
        body = wrapped(str(text), indent=15).lstrip()
        shown.append(f"  {name:<12} {body}")
    return "\n".join(shown)


def _look_words(report: Mapping[str, Any]) -> str:
    import time

    from flows.cli_output import evidence, moment

    about = f"v{report['version']}: " if report["version"] else ""
    words = f"{moment(time.time())[11:]}  {about}{report['reason']}"
    numbers = ", ".join(f"{name} {evidence(log10)}" for name, log10 in report["numbers"].items())
    words += f"; E of harm: {numbers}" if numbers and report["outcome"] == "INCONCLUSIVE" else ""
    return f"{words}\n          Next: {report['next_step']}" if report["next_step"] else words
