"""Commands about policies: check a file, print every key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def validate(
    file: Annotated[Path, typer.Argument(help="A policy file: ENDPOINT.yaml.")],
    as_json: AsJson = False,
) -> None:
    """Check a policy file.

    Every problem is named with its line, an unknown key with the nearest valid one.
    """
    from configs.errors import PolicyError
    from configs.loading import load_policy
    from flows.cli_output import print_json

    try:
        policy = load_policy(file)
    except PolicyError as error:
        if not as_json:
            raise
        problems = [
            {"line": problem.line, "key": problem.key, "problem": problem.message}
            for problem in error.problems
        ]
        print_json({"file": str(file), "valid": False, "problems": problems})
        raise typer.Exit(1) from error
    if as_json:
        told = {"file": str(file), "valid": True, "warnings": policy.warnings}
        print_json({**told, "policy": policy.model_dump(mode="json")})
    else:
        steps = ", ".join(f"{step:g}%" for step in policy.canary.steps)
        elsewhere = "".join(f", {name} too" for name in policy.environments)
        typer.echo(
            f"{file} is valid{elsewhere}: endpoint {policy.endpoint}, model {policy.model}, ramp {steps}"
        )
        for warning in policy.warnings:
            typer.echo(f"warning: {warning}")


def show_policy_keys(as_json: AsJson = False) -> None:
    """Print every key that a policy may have.

    With what it takes, its default, and what it means.
    """
    from dataclasses import asdict

    from configs.keys import policy_keys
    from flows.cli_output import print_json

    keys = list(policy_keys())
    if as_json:
        print_json([asdict(key) for key in keys])
    else:
        for key in keys:
            default = "" if key.default in {"required", "as its keys say"} else "default "
            typer.echo(f"{key.path}  ({key.takes}; {default}{key.default})\n    {key.description}")
