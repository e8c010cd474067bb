"""Nothing a user can type is undocumented, and the light commands stay light."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from configs.keys import policy_keys
from configs.settings import Settings
from tests.configs.policies import VALID

ROOT = Path(__file__).parents[2]
HEAVY = {
    "prefect",
    "mlflow",
    "pandas",
    "numpy",
    "sklearn",
    "scipy",
    "evidently",
    "matplotlib",
    "sqlalchemy",
    "boto3",
}


def commands(app: typer.Typer, prefix: str = "") -> Iterator[str]:
    for command in app.registered_commands:
        callback = command.callback
        assert callback is not None
        yield prefix + (command.name or callback.__name__)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{prefix}{group.name} ")


def test_every_command_is_in_the_readme() -> None:
    from flows.cli import app

    readme = (ROOT / "README.md").read_text()
    shown = readme.replace("\\|", "|")
    for first, others in re.findall(r"interlock keys (\w+)((?:\|\w+)+)", shown):
        shown += "".join(f"interlock keys {name} " for name in (first, *others.split("|")))
    missing = [name for name in commands(app) if f"interlock {name}" not in shown]
    assert missing == [], f"README.md does not show: {', '.join(missing)}"


def test_every_command_and_option_explains_itself() -> None:
    from flows.cli import app

    group = typer.main.get_command(app)
    silent: list[str] = []

    def visit(command: object, path: str) -> None:
        if not getattr(command, "help", None):
            silent.append(path)
        named = [it for it in getattr(command, "params", ()) if it.name != "help"]
        silent.extend(f"{path} {it.name}" for it in named if not getattr(it, "help", None))
        for name, inner in getattr(command, "commands", {}).items():
            visit(inner, f"{path} {name}")

    visit(group, "interlock")
    assert silent == []


def test_commands_of_the_readme_exist() -> None:
    from flows.cli import app

    known = {name.split()[0] for name in commands(app)}
    readme = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^\s*(?:\$ )?interlock ([a-z-]+)", readme, flags=re.MULTILINE))
    assert used <= known, f"README.md shows commands that do not exist: {sorted(used - known)}"


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "e2e", "check", "bench", "clean"} <= targets
    used = set(
        re.findall(r"^\s*(?:\$ )?make ([a-z0-9-]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    )
    assert used <= targets


def test_every_policy_key_and_setting_is_described() -> None:
    assert [key.path for key in policy_keys() if not key.description.strip()] == []
    assert [name for name, info in Settings.model_fields.items() if not info.description] == []


@pytest.mark.parametrize("arguments", [["--help"], ["release", "--help"], ["keys", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """Below `--help` itself typer loads pydantic, to know its parameters' types; we cannot help it."""
    light = {"rich", "httpx"} | ({"pydantic"} if len(arguments) == 1 else set())
    assert imported(arguments) & (HEAVY | light) == set()


@pytest.mark.parametrize("arguments", [["status", "--json"], ["history", "flights", "--json"]])
def test_looking_imports_neither_prefect_nor_mlflow(arguments: list[str], tmp_path: Path) -> None:
    assert (
        imported(arguments, tmp_path) & {"prefect", "mlflow", "sklearn", "evidently", "matplotlib"} == set()
    )


def imported(arguments: list[str], state_dir: Path | None = None) -> set[str]:
    """Top-level modules that a command loads."""
    code = (
        "import json, sys\n"
        f"sys.argv = ['interlock', *{arguments!r}]\n"
        "from flows.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ending:\n"
        "    assert not ending.code, ending.code\n"
        "print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "INTERLOCK_POLICY_DIR": "/nonexistent"}
    if state_dir is not None:
        (state_dir / "state").mkdir()
        (state_dir / "flights.yaml").write_text(VALID)
        environment |= {
            "INTERLOCK_STATE_DIR": str(state_dir / "state"),
            "INTERLOCK_POLICY_DIR": str(state_dir),
        }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))
