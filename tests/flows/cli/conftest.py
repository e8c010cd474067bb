"""Runs the command line in this process, against a stack of its own that is not up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.settings import Settings
from tests.serving.stack.conftest import free_ports


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


Interlock = Callable[..., Result]


@pytest.fixture
def cli_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings that the command line finds in its environment."""
    (tmp_path / "policies").mkdir()
    gateway, metrics, hook, mlflow, prefect = free_ports(5)
    settings = Settings(
        state_dir=tmp_path / "state",
        policy_dir=tmp_path / "policies",
        gateway_port=gateway,
        gateway_metrics_port=metrics,
        hook_port=hook,
        mlflow_port=mlflow,
        prefect_port=prefect,
        mlflow_tracking_uri=None,
        prefect_api_url=None,
    )
    for name, value in settings.as_environment().items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
def interlock(
    cli_settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Interlock:
    """Run `interlock ARGUMENTS`."""
    from flows.cli import main

    def run(*arguments: str) -> Result:
        monkeypatch.setattr("sys.argv", ["interlock", *arguments])
        status = 0
        try:
            main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run
