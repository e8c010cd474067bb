"""supervisord as we use it: started right, idempotent, and nothing is ever left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.settings import Settings
from serving.errors import SetupError
from serving.processes import is_alive, stack_processes, stop_processes
from serving.supervision import Program, Supervisor, SupervisorUnavailable, bound_log
from tests.serving.stack.conftest import free_ports

SLEEP = ("/bin/sh", "-c", "echo started; sleep 600")


def eventually(condition: Callable[[], bool], wait_s: float = 30) -> bool:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def program(settings: Settings, name: str = "one", **changes: object) -> Program:
    made = Program(name, SLEEP, log_path=settings.logs_dir / f"{name}.log", start_s=0)
    return dataclasses.replace(made, **changes)  # pyright: ignore[reportArgumentType]


def said(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def begin(supervisor: Supervisor, wanted: Program) -> int:
    """Ensure it and wait until it says something: a signal that comes before its exec is lost."""
    before = said(wanted.log_path)
    supervisor.ensure(wanted)
    assert eventually(lambda: len(said(wanted.log_path)) > len(before))
    return pid_of(supervisor, wanted.name)


def pid_of(supervisor: Supervisor, name: str = "one") -> int:
    assert eventually(lambda: name in supervisor.processes() and supervisor.processes()[name].pid > 0)
    return supervisor.processes()[name].pid


def test_nothing_runs_and_it_says_so(stack_settings: Settings) -> None:
    supervisor = Supervisor(stack_settings)
    assert supervisor.states() == {}
    with pytest.raises(SupervisorUnavailable, match="Next: interlock up"):
        supervisor.ensure(program(stack_settings))
    supervisor.shutdown()


def test_ensuring_twice_is_ensuring_once(stack_settings: Settings, supervisor: Supervisor) -> None:
    first = begin(supervisor, program(stack_settings))
    supervisor.ensure(program(stack_settings))
    supervisor.start_daemon()
    assert pid_of(supervisor) == first
    assert said(stack_settings.logs_dir / "one.log") == "started\n"


def test_a_changed_description_restarts_only_its_program(
    stack_settings: Settings, supervisor: Supervisor
) -> None:
    one = begin(supervisor, program(stack_settings))
    two = begin(supervisor, program(stack_settings, "two"))
    assert begin(supervisor, program(stack_settings, environment={"SHARE": "50%"})) != one
    assert pid_of(supervisor, "two") == two
    environ = Path(f"/proc/{pid_of(supervisor)}/environ").read_bytes()
    assert eventually(lambda: b"SHARE=50%" in Path(f"/proc/{pid_of(supervisor)}/environ").read_bytes()), (
        environ
    )
    assert not is_alive(one)


def test_a_killed_program_comes_back_without_its_old_children(
    stack_settings: Settings, supervisor: Supervisor
) -> None:
    """A child of the killed leader that holds the port would make every restart fail."""
    (port,) = free_ports(1)
    listen = f"""
import os, socket, time
listener = socket.create_server(("127.0.0.1", {port}))
print(os.getpid(), flush=True)
time.sleep(600)
"""
    code_path = stack_settings.state / "listen.py"
    code_path.write_text(listen)
    with_child = ("/bin/sh", "-c", f"{sys.executable} -S {code_path}; exit 1")
    leader = begin(supervisor, program(stack_settings, command=with_child))
    log_path = stack_settings.logs_dir / "one.log"
    child = int(said(log_path))
    os.kill(leader, signal.SIGKILL)
    assert eventually(lambda: len(said(log_path).split()) == 2), said(log_path)
    assert not is_alive(child)
    assert answers(port)


def test_a_program_that_cannot_start_is_tried_again(stack_settings: Settings, supervisor: Supervisor) -> None:
    marker = stack_settings.state / "marker"
    command = ("/bin/sh", "-c", f"[ -e {marker} ] && exec sleep 600; exit 3")
    supervisor.ensure(program(stack_settings, command=command, start_s=1))
    assert eventually(lambda: supervisor.states()["one"] == "BACKOFF")
    marker.touch()
    assert eventually(lambda: supervisor.states()["one"] == "RUNNING")


def test_without_autorestart_the_end_is_the_end(stack_settings: Settings, supervisor: Supervisor) -> None:
    supervisor.ensure(program(stack_settings, command=("/bin/echo", "done"), autorestart=False))
    assert eventually(lambda: supervisor.states()["one"] == "EXITED")
    supervisor.ensure(program(stack_settings, command=("/bin/echo", "done"), autorestart=False))


def test_removing_stops_and_forgets(stack_settings: Settings, supervisor: Supervisor) -> None:
    pid = begin(supervisor, program(stack_settings))
    supervisor.remove("one")
    supervisor.remove("one")
    assert not is_alive(pid)
    assert supervisor.states() == {}
    assert list((stack_settings.run_dir / "supervisor.d").iterdir()) == []


def test_a_program_that_ignores_sigterm_is_killed_with_its_children(
    stack_settings: Settings, supervisor: Supervisor
) -> None:
    deaf = ("/bin/sh", "-c", "trap '' TERM; sleep 600 & echo deaf; while true; do sleep 1; done")
    begin(supervisor, program(stack_settings, command=deaf, stop_wait_s=1))
    supervisor.remove("one")
    daemon = int((stack_settings.run_dir / "supervisord.pid").read_text())
    assert eventually(lambda: stack_processes(stack_settings.run_dir) == [daemon])


def test_signals_have_their_default_meaning(stack_settings: Settings) -> None:
    """`interlock up &` in a script ignores SIGINT; a worker that inherits that ignores SIGTERM too."""
    up = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.pthread_sigmask("
        "signal.SIG_BLOCK, [signal.SIGTERM]); from configs.settings import Settings; "
        "from serving.supervision import *; s = Settings(); v = Supervisor(s); v.start_daemon(); "
        "v.ensure(Program('one', ('/bin/sleep', '600'), log_path=s.logs_dir / 'one.log', start_s=0))"
    )
    environment = {**os.environ, **stack_settings.as_environment()}
    supervisor = Supervisor(stack_settings)
    try:
        subprocess.run([sys.executable, "-c", up], env=environment, check=True, timeout=60)
        status = Path(f"/proc/{pid_of(supervisor)}/status").read_text()
        masks = dict(
            line.split(":\t") for line in status.splitlines() if line.startswith(("SigIgn", "SigBlk"))
        )
        assert int(masks["SigIgn"], 16) & (1 << (signal.SIGINT - 1)) == 0
        assert int(masks["SigBlk"], 16) == 0
    finally:
        supervisor.shutdown()


def test_shutting_down_leaves_nothing_and_coming_up_restores(
    stack_settings: Settings, supervisor: Supervisor
) -> None:
    begin(supervisor, program(stack_settings))
    begin(
        supervisor,
        program(stack_settings, "two", command=("/bin/sh", "-c", "sleep 601 & echo two; sleep 600")),
    )
    supervisor.shutdown()
    assert stack_processes(stack_settings.run_dir) == []
    assert supervisor.states() == {}
    supervisor.start_daemon()
    assert eventually(lambda: said(stack_settings.logs_dir / "two.log") == "two\ntwo\n")
    assert eventually(lambda: said(stack_settings.logs_dir / "one.log") == "started\nstarted\n")
    assert supervisor.states() == {"one": "RUNNING", "two": "RUNNING"}


def test_higher_priorities_are_stopped_first(stack_settings: Settings, supervisor: Supervisor) -> None:
    order = stack_settings.state / "order"
    for name, priority in (("server", 100), ("worker", 900)):
        say = f"trap 'sleep 0.2; echo {name} >> {order}; exit' TERM; echo ready; while :; do sleep 0.1; done"
        command = ("/bin/sh", "-c", say)
        begin(supervisor, program(stack_settings, name, command=command, priority=priority))
    supervisor.shutdown()
    assert order.read_text().split() == ["worker", "server"]


def test_orphans_of_a_killed_supervisord_are_replaced(
    stack_settings: Settings, supervisor: Supervisor
) -> None:
    orphan = begin(supervisor, program(stack_settings))
    os.kill(int((stack_settings.run_dir / "supervisord.pid").read_text()), signal.SIGKILL)
    assert eventually(lambda: not supervisor.is_running())
    assert is_alive(orphan)
    supervisor.start_daemon()
    assert not is_alive(orphan)
    assert eventually(lambda: said(stack_settings.logs_dir / "one.log") == "started\nstarted\n")
    assert pid_of(supervisor) != orphan


def test_shutdown_finds_orphans_without_a_daemon(stack_settings: Settings, supervisor: Supervisor) -> None:
    orphan = begin(supervisor, program(stack_settings))
    os.kill(int((stack_settings.run_dir / "supervisord.pid").read_text()), signal.SIGKILL)
    assert eventually(lambda: not supervisor.is_running())
    supervisor.shutdown()
    assert not is_alive(orphan)


def test_many_callers_at_once_agree(stack_settings: Settings, supervisor: Supervisor) -> None:
    names = [f"p{number}" for number in range(6)]
    errors: list[Exception] = []

    def ensure(name: str) -> None:
        try:
            Supervisor(stack_settings).start_daemon()
            Supervisor(stack_settings).ensure(program(stack_settings, name))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ensure, args=(name,)) for name in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(supervisor.states()) == names
    logs = [stack_settings.logs_dir / f"{name}.log" for name in names]
    assert eventually(lambda: all(said(path) == "started\n" for path in logs))


def test_a_large_log_is_put_aside(stack_settings: Settings, supervisor: Supervisor) -> None:
    log_path = stack_settings.logs_dir / "one.log"
    with log_path.open("wb") as handle:
        handle.truncate(50_000_001)
    supervisor.ensure(program(stack_settings))
    assert eventually(lambda: said(log_path) == "started\n")
    assert log_path.with_name("one.log.1").stat().st_size == 50_000_000


def test_a_log_that_grows_while_it_is_written_to_keeps_its_end(tmp_path: Path) -> None:
    log_path = tmp_path / "one.log"
    with log_path.open("ab", buffering=0) as writing:
        writing.truncate(50_000_000)
        writing.write(b"last")
        assert bound_log(log_path)
        assert not bound_log(log_path), "it is small now"
        writing.write(b"next")
    assert log_path.read_bytes() == b"next"
    aside = tmp_path / "one.log.1"
    assert (aside.stat().st_size, aside.read_bytes()[-5:]) == (50_000_000, b"\0last")
    assert not bound_log(tmp_path / "none.log")


def test_what_supervisord_says_when_it_cannot_start_is_passed_on(
    stack_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.supervision.ini_path", lambda _: "/nonexistent/%(nothing)s")
    with pytest.raises(SetupError, match="nothing"):
        Supervisor(stack_settings).start_daemon()


def test_stopping_processes_escalates() -> None:
    deaf = subprocess.Popen(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while true; do sleep 0.1; done"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert deaf.stdout is not None
    assert deaf.stdout.readline() == "ready\n"
    stop_processes([deaf.pid], wait_s=0.2)
    assert deaf.wait(timeout=60) == -signal.SIGKILL
    deaf.stdout.close()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
