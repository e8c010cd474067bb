"""What the stack consists of, and what stops it from coming up: said before anything starts."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from configs.settings import Settings
from serving.errors import NotHealthy, SetupError
from serving.programs import Program
from serving.stack import (
    STACK_PROGRAMS,
    Server,
    answers,
    describe_stack,
    is_port_free,
    log_tail,
    servers_of,
    start_supervision,
    wait_healthy,
)
from serving.supervision import Supervisor
from tests.serving.stack.test_supervision import SLEEP, begin, eventually, said


def fake_server(settings: Settings, name: str, code: str, *, wait_s: float = 20) -> Server:
    """A server of the stack that runs this Python."""
    log_path = settings.logs_dir / f"{name}.log"
    program = Program(name, (sys.executable, "-c", code), log_path=log_path, start_s=1)
    url = f"http://127.0.0.1:{settings.hook_port}/"
    return Server(name, f"the {name}", lambda: program, log_path, (settings.hook_port,), url, wait_s)


def serve(port: int) -> str:
    return (
        "from http.server import *\n"
        f"ThreadingHTTPServer(('127.0.0.1', {port}), SimpleHTTPRequestHandler).serve_forever()"
    )


def test_the_stack_is_these_programs_and_their_secrets_are_made_late(stack_settings: Settings) -> None:
    servers = servers_of(stack_settings)
    assert {server.name for server in servers} == STACK_PROGRAMS
    assert not stack_settings.secrets_dir.exists()
    ports = [port for server in servers for port in server.ports]
    assert len(ports) == len(set(ports)) == 5
    for server in servers:
        program = server.describe()
        assert program.name == server.name
        assert str(stack_settings.state) in str(program.log_path)


def test_servers_that_are_there_already_are_not_started(stack_settings: Settings) -> None:
    foreign = stack_settings.model_copy(
        update={
            "mlflow_tracking_uri": "http://127.0.0.1:1",
            "prefect_api_url": "https://prefect.example.org/api",
        }
    )
    assert {server.name for server in servers_of(foreign)} == STACK_PROGRAMS - {"mlflow", "prefect"}
    worker = next(server for server in servers_of(foreign) if server.name == "worker").describe()
    assert worker.environment["PREFECT_API_URL"] == "https://prefect.example.org/api"
    assert worker.environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:1"


def test_an_unreachable_foreign_server_is_shown_as_such(stack_settings: Settings) -> None:
    foreign = stack_settings.model_copy(update={"mlflow_tracking_uri": "http://127.0.0.1:1"})
    rows = describe_stack(foreign)
    assert [(row["program"], row["state"]) for row in rows] == [("mlflow", "UNREACHABLE")]


def test_taken_ports_are_named_before_anything_starts(stack_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", stack_settings.hook_port)):
        with pytest.raises(SetupError, match=rf"port {stack_settings.hook_port} \(registry-hook receiver\)"):
            start_supervision(stack_settings, servers_of(stack_settings))
        assert not is_port_free("127.0.0.1", stack_settings.hook_port)
    assert Supervisor(stack_settings).states() == {}
    assert is_port_free("127.0.0.1", stack_settings.hook_port)


def test_a_server_of_files_is_no_server(stack_settings: Settings) -> None:
    files = stack_settings.model_copy(update={"mlflow_tracking_uri": "sqlite:///mlflow.db"})
    with pytest.raises(SetupError, match=r"MLFLOW_TRACKING_URI=sqlite:///mlflow.db is not a server"):
        start_supervision(files, ())


def test_a_state_folder_that_cannot_be_made_is_said(stack_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = stack_settings.model_copy(update={"state_dir": tmp_path / "file" / "state"})
    with pytest.raises(SetupError, match="cannot be written"):
        start_supervision(wrong, ())


def test_health_is_waited_for(stack_settings: Settings, supervisor: Supervisor) -> None:
    server = fake_server(stack_settings, "web", serve(stack_settings.hook_port))
    supervisor.ensure(server.describe())
    healthy: list[str] = []
    wait_healthy([server], supervisor, lambda it, seconds: healthy.append(it.name))
    assert healthy == ["web"]
    assert answers(server.health_url or "")


@pytest.mark.slow
def test_a_server_that_does_not_come_up_shows_its_log(
    stack_settings: Settings, supervisor: Supervisor
) -> None:
    server = fake_server(stack_settings, "web", "raise SystemExit('the disk is full')", wait_s=600)
    supervisor.ensure(server.describe())
    with pytest.raises(NotHealthy, match="the disk is full") as caught:
        wait_healthy([server], supervisor, lambda it, seconds: None)
    assert str(server.log_path) in str(caught.value)
    assert "Next: interlock logs web" in str(caught.value)


def test_a_server_that_never_answers_has_its_time(stack_settings: Settings, supervisor: Supervisor) -> None:
    server = fake_server(stack_settings, "web", "import time; time.sleep(600)", wait_s=1)
    supervisor.ensure(server.describe())
    with pytest.raises(NotHealthy, match="does not"):
        wait_healthy([server], supervisor, lambda it, seconds: None)


def test_leftovers_of_another_configuration_are_not_started(stack_settings: Settings) -> None:
    """A stack that had its own MLflow, and now uses the user's, must not start the old one again."""
    supervisor = Supervisor(stack_settings)
    supervisor.start_daemon()
    for name in ("mlflow", "flights-blue-0"):
        log_path = stack_settings.logs_dir / f"{name}.log"
        begin(supervisor, Program(name, SLEEP, log_path=log_path, start_s=0))
    supervisor.shutdown()
    try:
        start_supervision(stack_settings, ())
        assert set(supervisor.states()) == {"flights-blue-0"}
        again = stack_settings.logs_dir / "flights-blue-0.log"
        assert eventually(lambda: said(again) == "started\nstarted\n")
    finally:
        supervisor.shutdown()


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    assert log_tail(tmp_path / "none", 3) == ""
    (tmp_path / "log").write_bytes(b"\xff" * 100_000 + b"\nlast but one\nlast\n")
    assert log_tail(tmp_path / "log", 2) == "last but one\nlast"
