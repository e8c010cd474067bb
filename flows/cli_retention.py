"""The command that forgets a user."""

from __future__ import annotations

from typing import Annotated

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def forget(
    endpoint: Endpoint,
    user: Annotated[str, typer.Option("--user", help="The user's id, as clients send it in x-user-id.")],
    tenant: Annotated[
        str,
        typer.Option(
            "--tenant", help="Only under this tenant; without it under every one that has requests or a key."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Take a user's requests out of captures, spool, labels, access log and the shadow's pages.

    Running it again takes out what came meanwhile. The trail gets counts, never the id.
    """
    from configs.loading import load_settings
    from flows.cli_output import print_json, who
    from tasks.bench import Bench
    from tasks.retention import forget_user

    done = forget_user(Bench.open(endpoint, load_settings()), user, tenant=tenant, who=who())
    if as_json:
        print_json(done.as_dict())
        return
    typer.echo(
        f"{endpoint}: took out {done.requests} captured requests, {done.spooled} of the spool and "
        f"{done.labels} labels, and cleared {done.pages} shadow pages; {done.log_lines} lines of the access "
        "log name nobody now."
    )
    typer.echo(f"The trail has it as {done.fingerprint}.")
