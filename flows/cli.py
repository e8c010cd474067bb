"""The command line: `interlock`.

Only typer is imported here; each command imports what it needs when it runs, because `--help`
must answer at once and `status` must not pay for MLflow or Prefect.
"""

from __future__ import annotations

import sys

import typer

from flows import (
    cli_approval,
    cli_decisions,
    cli_drift,
    cli_drill,
    cli_environments,
    cli_evaluate,
    cli_keys,
    cli_labels,
    cli_policy,
    cli_release,
    cli_retention,
    cli_simulate,
    cli_stack,
    cli_watch,
)

_EPILOG = (
    "Exit statuses: 0 done, 1 failed, 2 wrong usage, 3 version rejected, 4 held, interrupted or aborted, "
    "5 refused in the present state, 6 a server does not answer: try again."
)

app = typer.Typer(
    name="interlock",
    help="Moves a registered model version to production only as far as the evidence allows.",
    epilog=_EPILOG,
    no_args_is_help=True,
    # rich's help pages cost 0.3 s of imports (markdown, pygments); tables of results use rich all the same
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _command in (cli_stack.up, cli_stack.down, cli_stack.status, cli_stack.doctor, cli_stack.logs):
    app.command()(_command)
app.command("env")(cli_stack.show_environment)
for _command in (cli_release.release, cli_release.pause, cli_release.resume, cli_release.abort):
    app.command()(_command)
for _command in (cli_approval.approve, cli_approval.reject):
    app.command()(_command)
for _command in (cli_watch.rollback, cli_release.history, cli_watch.watch):
    app.command()(_command)
app.command()(cli_evaluate.evaluate)
app.command("replay-decisions")(cli_decisions.replay_decisions)
app.command()(cli_drift.drift)
app.command()(cli_drill.drill)
app.command()(cli_environments.diff)
app.command("load-test")(cli_environments.load_test)
app.command()(cli_labels.labels)
app.command()(cli_retention.forget)
app.command()(cli_policy.validate)
app.command()(cli_simulate.simulate)
app.command("policy-keys")(cli_policy.show_policy_keys)
app.add_typer(cli_keys.app, name="keys")


def main() -> None:
    """Run the command line; a foreseen failure is one message and an exit status, never a stack trace."""
    try:
        app()
    except Exception as error:
        from tasks.failures import explain

        explained = explain(error)
        if explained is None:
            raise
        status, message = explained
        print(message, file=sys.stderr)
        raise SystemExit(int(status)) from error


if __name__ == "__main__":
    main()
