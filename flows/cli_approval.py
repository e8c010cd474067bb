"""Commands that answer a release which waits for a person."""

from __future__ import annotations

from typing import Annotated

import typer

Endpoint = Annotated[str, typer.Argument(help="The endpoint, as its policy file names it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the trail.")]


def approve(endpoint: Endpoint, reason: Reason) -> None:
    """Say yes to the release that waits.

    It goes on within seconds, or waits for a second person where the policy wants two.
    """
    _answer(endpoint, is_yes=True, reason=reason)


def reject(endpoint: Endpoint, reason: Reason) -> None:
    """Say no to the release that waits.

    It ends rejected; the version is released again only with --again.
    """
    _answer(endpoint, is_yes=False, reason=reason)


def _answer(endpoint: str, *, is_yes: bool, reason: str) -> None:
    if not reason.strip():
        raise typer.BadParameter("--reason must say why: it is kept in the trail")
    from configs.loading import load_settings
    from flows.cli_output import who
    from tasks.control import answer

    typer.echo(answer(load_settings(), endpoint, is_yes=is_yes, who=who(), reason=reason))
