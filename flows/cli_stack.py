"""Commands about the local stack: up, down, status, doctor, logs, env."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from configs.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def up(as_json: AsJson = False) -> None:
    """Start what is missing of the stack.

    Registers the webhook, deployments and automations too. Running it again changes only what differs.
    """
    from dataclasses import asdict

    from configs.loading import load_settings
    from flows.cli_output import print_json
    from tasks.stack import up as bring_up

    report = bring_up(load_settings(), (lambda _: None) if as_json else typer.echo)
    for warning in report.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    if as_json:
        print_json(asdict(report))
        return
    typer.echo(
        f"The stack is up after {report.seconds:.0f} s.\n"
        f"  clients call  {report.gateway_url}/ENDPOINT/invocations\n"
        f"  MLflow        {report.mlflow_url}\n"
        f"  Prefect       {report.prefect_url.removesuffix('/api')}\n"
        f'In your shell: eval "$(interlock env)"'
    )


def down() -> None:
    """Stop every process of the stack. Data stays; servers that you run yourself are left alone."""
    from configs.loading import load_settings
    from tasks.stack import down as bring_down

    was_running = bring_down(load_settings())
    typer.echo("The stack is down." if was_running else "The stack was not up; nothing is left running.")


def status(
    endpoint: Annotated[str | None, typer.Argument(help="One endpoint; all without it.")] = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, once a second, until Ctrl-C.")] = False,
) -> None:
    """Show what serves and what is being released."""
    from configs.loading import load_settings
    from flows.cli_output import print_json, print_json_line, show

    settings = load_settings()
    if not watch:
        found = _status(settings, endpoint)
        print_json(found) if as_json else show(*_render_status(found))
        return
    try:
        if as_json:
            for found in _every_second(settings, endpoint):
                print_json_line(found)
        else:
            from rich.console import Group
            from rich.live import Live

            with Live(auto_refresh=False) as live:
                for found in _every_second(settings, endpoint):
                    live.update(Group(*_render_status(found)), refresh=True)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def doctor(as_json: AsJson = False) -> None:
    """Check the machine and the stack.

    Says what is missing and how to mend it.
    """
    from dataclasses import asdict

    from configs.loading import load_settings
    from flows.cli_output import print_json, show, table
    from tasks.doctor import examine

    findings = examine(load_settings())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [
            ("ok" if finding.ok else "PROBLEM" if finding.required else "note", finding.check, finding.found)
            for finding in findings
        ]
        show(table(("", "check", "found"), rows))
        checks_of: dict[str, list[str]] = {}
        for finding in findings:
            if not finding.ok:
                checks_of.setdefault(finding.fix, []).append(finding.check)
        for fix, checks in checks_of.items():
            typer.echo(f"{', '.join(checks)}: {fix}")
    if any(finding.required and not finding.ok for finding in findings):
        raise typer.Exit(1)


def logs(
    program: Annotated[str | None, typer.Argument(help="One program; all without it.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="Last lines to show.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show the end of the programs' logs."""
    from configs.loading import load_settings

    settings = load_settings()
    found = {path.stem: path for path in sorted(settings.logs_dir.glob("*.log"))}
    if program is not None and program not in found:
        known = ", ".join(found) or "none yet"
        raise typer.BadParameter(f"no log of {program!r} in {settings.logs_dir}; there is: {known}")
    chosen = {program: found[program]} if program else found
    for name, path in chosen.items():
        for line in path.read_bytes()[-262_144:].decode(errors="replace").splitlines()[-lines:]:
            typer.echo(f"{name}: {line}" if program is None else line)
    if follow:
        _follow_logs(chosen, with_names=program is None)


def show_environment(as_json: AsJson = False) -> None:
    """Print variables for your shell.

    With them your own MLflow and Prefect clients use this stack: eval "$(interlock env)".
    """
    import shlex

    from configs.loading import load_settings
    from flows.cli_output import print_json

    exported = load_settings().as_environment()
    names = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "INTERLOCK_STATE_DIR", "INTERLOCK_POLICY_DIR")
    variables = {name: exported[name] for name in names}
    if as_json:
        print_json(variables)
    else:
        typer.echo("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))


def _status(settings: Settings, endpoint: str | None) -> dict[str, Any]:
    from tasks.stack import stack_programs
    from tasks.status import all_endpoints, endpoint_status

    if endpoint is not None:
        return endpoint_status(settings, endpoint)
    endpoints: list[dict[str, Any]] = []
    for name in all_endpoints(settings):
        try:
            endpoints.append(endpoint_status(settings, name))
        except Exception as error:  # noqa: BLE001  one broken endpoint must not hide the others
            endpoints.append({"endpoint": name, "error": str(error)})
    return {"stack": stack_programs(settings), "endpoints": endpoints}


def _every_second(settings: Settings, endpoint: str | None) -> Iterator[dict[str, Any]]:
    while True:
        yield _status(settings, endpoint)
        time.sleep(1)


def _render_status(found: dict[str, Any]) -> list[Any]:
    from flows.cli_output import endpoints_table, moment, stack_table

    if "stack" in found:
        nothing = "No program runs. Next: interlock up"
        stack = stack_table(found["stack"]) if found["stack"] else nothing
        none = "No endpoint has a policy yet. Next: write configs/endpoints/NAME.yaml (interlock policy-keys)"
        return [stack, endpoints_table(found["endpoints"]) if found["endpoints"] else none]
    lines: list[Any] = [endpoints_table([found])]
    release = found["release"] or found["last_release"]
    if release:
        ended = f", ended {moment(release['ended_at'])}" if release["ended_at"] else ""
        lines.append(
            f"{release['release']} {release['state']}: {release['reason'] or release['stage']}{ended}"
        )
        for stage, verdict in release["verdicts"].items():
            lines.append(f"  {stage}: {verdict['outcome']}, {verdict['reason']}")
            if verdict["would_change"]:
                lines.append(f"    what would change it: {verdict['would_change']}")
        if (release["progress"] or {}).get("would_change"):
            lines.append(f"  what would change it: {release['progress']['would_change']}")
        if cut_short := (release["progress"] or {}).get("cut_short"):
            shares = ", ".join(f"{arm} {share:.1%}" for arm, share in cut_short.items())
            lines.append(f"  answers cut short by max_tokens: {shares}")
        if release["cost_words"]:
            lines.append(f"  cost: {release['cost_words']}")
        lines += [f"  {release[link]}" for link in ("flow_run_url", "mlflow_url") if release[link]]
    replicas = (found["live"] or {}).get("replicas", {})
    for slot, of_slot in replicas.items():
        healthy = sum(1 for replica in of_slot if replica["healthy"])
        if of_slot:
            lines.append(f"{slot}: {healthy} of {len(of_slot)} replicas healthy")
        if counts := found.get("guards", {}).get(slot):
            lines.append("  guards: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return lines


def _follow_logs(chosen: dict[str, Path], *, with_names: bool) -> None:
    handles = {name: path.open(errors="replace") for name, path in chosen.items()}
    for handle in handles.values():
        handle.seek(0, 2)
    try:
        while True:
            for name, handle in handles.items():
                for line in handle:
                    typer.echo(f"{name}: {line}" if with_names else line, nl=False)
            time.sleep(0.3)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    finally:
        for handle in handles.values():
            handle.close()
