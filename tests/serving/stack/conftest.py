"""Stacks of their own for the tests of supervision: own folder, own ports, nothing left running."""

from __future__ import annotations

import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from configs.settings import Settings
from serving.processes import stack_processes
from serving.supervision import Supervisor


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@pytest.fixture(autouse=True)
def no_foreign_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "INTERLOCK_STACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stack_settings(tmp_path: Path) -> Settings:
    """Settings of a stack that no other test has."""
    gateway, metrics, hook, mlflow, prefect = free_ports(5)
    return Settings(
        state_dir=tmp_path / "state",
        policy_dir=tmp_path / "policies",
        gateway_port=gateway,
        gateway_metrics_port=metrics,
        hook_port=hook,
        mlflow_port=mlflow,
        prefect_port=prefect,
    )


@pytest.fixture
def supervisor(stack_settings: Settings) -> Generator[Supervisor]:
    """A running supervisord; whatever the test does, nothing of it is left afterwards."""
    made = Supervisor(stack_settings)
    made.start_daemon()
    yield made
    made.shutdown()
    assert stack_processes(stack_settings.run_dir) == []
