"""Commands about API keys: `interlock keys create|revoke|list`."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tenant = Annotated[str, typer.Argument(help="Who the key is for; limits and logs are by tenant.")]

app = typer.Typer(
    help="API keys of tenants: hashed at rest, shown once.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def create(tenant: Tenant, as_json: AsJson = False) -> None:
    """Make a key.

    It is shown now and never again: only its hash is stored.
    """
    from configs.loading import load_settings
    from flows.cli_output import print_json
    from tasks.keys import create_key

    made = create_key(load_settings(), tenant)
    if as_json:
        print_json(made)
    else:
        typer.echo(made["key"])
        typer.echo(f"Key {made['id']} of tenant {tenant}. Keep it now: it cannot be shown again.", err=True)


@app.command()
def revoke(
    tenant: Tenant,
    key_id: Annotated[
        str | None, typer.Argument(help="One key's id; all keys of the tenant without it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Stop a key, or all of a tenant's, from working, at once."""
    from configs.loading import load_settings
    from flows.cli_output import print_json
    from tasks.keys import revoke_keys

    revoked = revoke_keys(load_settings(), tenant, key_id)
    if as_json:
        print_json(revoked)
    else:
        typer.echo(f"Revoked of tenant {tenant}: {', '.join(key['id'] for key in revoked)}")


@app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Argument(help="One tenant's keys; all without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which keys exist; never the keys themselves."""
    from configs.loading import load_settings
    from flows.cli_output import moment, print_json, show, table
    from tasks.keys import known_keys

    keys = known_keys(load_settings(), tenant)
    if as_json:
        print_json(keys)
    elif keys:
        rows = [(key["id"], key["tenant"], moment(key["created"])) for key in keys]
        show(table(("id", "tenant", "created"), rows))
    else:
        typer.echo("No keys yet. Next: interlock keys create TENANT")
