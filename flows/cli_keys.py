"""Commands about API keys: `interlock keys create|revoke|list`."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    help="API keys of tenants: hashed at rest, shown once.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Who the key is for; limits and logs are by tenant.")],
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown now and never again: only its hash is stored."""
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
    key_id: Annotated[str, typer.Argument(help="The key's id, or a tenant for all its keys.")],
) -> None:
    """Stop a key, or all keys of a tenant, from working, at once."""
    from configs.loading import load_settings
    from tasks.keys import revoke_keys

    revoked = revoke_keys(load_settings(), key_id)
    typer.echo(f"revoked: {', '.join(revoked)}")


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Show which keys exist: ids and tenants, never the keys."""
    from configs.loading import load_settings
    from flows.cli_output import print_json, show, table
    from tasks.keys import known_keys

    keys = known_keys(load_settings())
    if as_json:
        print_json(keys)
    else:
        show(table(("id", "tenant", "created"), [(key["id"], key["tenant"], key["created"]) for key in keys]))
