"""Commands about releases: start, steer, take back, look back."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def release(
    endpoint: Endpoint,
    version: Annotated[
        str, typer.Argument(help="Version of the model: 3; with a prompt 3+p2, or p2 to keep the model.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it; the exit status says how it ended.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Although it was rejected before.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the trail. --again needs it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Release a version, or resume its release.

    Evaluate, shadow, ramp, soak, promote; each stage only after the one before has passed.
    """
    if again and not reason:
        raise typer.BadParameter("--again needs --reason: say why a rejected version may try again")
    from configs.loading import load_settings
    from flows.cli_output import print_json_line
    from tasks.control import is_version, start_release

    if not is_version(version):
        raise typer.BadParameter(
            f"{version!r} is no version: write 3, 3+p2 (model and prompt) or p2 (prompt)"
        )
    settings = load_settings()
    url = start_release(settings, endpoint, version, again=again, reason=reason)
    if not wait:
        if as_json:
            shown = int(version) if version.isdecimal() else version
            print_json_line({"endpoint": endpoint, "version": shown, "flow_run_url": url})
        else:
            typer.echo(f"{endpoint} v{version}: {url}\nFollow it: interlock status {endpoint} --watch")
        return
    from tasks.following import outcome_status

    last = _follow(endpoint, version, url, as_json=as_json)
    raise typer.Exit(int(outcome_status(last)))


def pause(endpoint: Endpoint) -> None:
    """Hold the ramp at its present share.

    It stays watched and can still roll back.
    """
    from configs.loading import load_settings
    from tasks.control import pause as ask_pause

    typer.echo(ask_pause(load_settings(), endpoint))


def resume(endpoint: Endpoint) -> None:
    """Let a paused or held release go on.

    An interrupted or held release is run again from where it stands.
    """
    from configs.loading import load_settings
    from tasks.control import resume as ask_resume

    typer.echo(ask_resume(load_settings(), endpoint))


def abort(endpoint: Endpoint) -> None:
    """End the open release without a verdict.

    Its share goes to 0; the version is not rejected.
    """
    from configs.loading import load_settings
    from flows.cli_output import who
    from tasks.control import abort as ask_abort

    typer.echo(ask_abort(load_settings(), endpoint, who=who()))


def history(
    endpoint: Endpoint,
    audit: Annotated[bool, typer.Option("--audit", help="Every change, not only releases.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what happened, newest first."""
    from configs.loading import load_endpoint, load_settings
    from flows.cli_output import moment, print_json, show, table, wrapped
    from tasks.status import endpoint_audit, release_history

    settings = load_settings()
    rows = endpoint_audit(settings, endpoint) if audit else release_history(settings, endpoint)
    if not rows:
        load_endpoint(settings, endpoint)  # a name that nobody knows is no endpoint without a history
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo(f"{endpoint}: nothing happened yet. Next: interlock release {endpoint} VERSION")
    elif audit:
        columns = tuple(rows[0])
        show(table(columns, ([row[column] for column in columns] for row in rows)))
    else:
        for row in rows:
            against = f" against v{row['champion']}" if row["champion"] else ""
            decided = f" in {row['decided_stage']}" if row["decided_stage"] else ""
            when = moment(row["ended_at"]) or f"{moment(row['started_at'])}, open"
            typer.echo(f"{when}  {row['release']}  v{row['version']}{against}  {row['state']}{decided}")
            for words in filter(None, (row["reason"], row["cost_words"])):
                typer.echo(wrapped(words, indent=4))


def _follow(endpoint: str, version: str, url: str, *, as_json: bool) -> dict[str, Any]:
    """Show a release run until it is over: JSON lines, a live line on a terminal, else a line a change."""
    from configs.loading import load_settings
    from flows.cli_output import print_json_line
    from tasks.following import follow

    snapshots = follow(load_settings(), endpoint, url)
    last: dict[str, Any] = {}
    if as_json:
        for last in snapshots:
            print_json_line(last)
        return last
    typer.echo(f"{endpoint} v{version}: {url}")
    if not sys.stdout.isatty():
        said = ""
        for last in snapshots:
            words = _snapshot_words(last)
            if words != said:
                typer.echo(words)
                said = words
        return last
    from rich.console import Console

    console = Console(highlight=False)
    with console.status("waiting for a worker") as status:
        said = ""
        for last in snapshots:
            words = _snapshot_words(last)
            head = words.partition(":")[0]
            if head != said:
                console.print(words, markup=False)
                said = head
            status.update(words.replace("[", "\\["))
    typer.echo(_snapshot_words(last))
    return last


def _snapshot_words(snapshot: Mapping[str, Any]) -> str:
    if snapshot["over"]:
        return f"{snapshot['run_state']}: {snapshot['message']}"
    release = snapshot["release"]
    if release is None:
        return f"{snapshot['run_state']}: waiting for the run to begin"
    from flows.cli_output import progress_words

    return f"{release['stage']}: {progress_words(release)}"
