"""Keeps the local processes running: a client of supervisord, which owns them all.

supervisord starts, restarts and stops programs; this module writes what it reads (one section a
program under `run_dir/supervisor.d`) and speaks XML-RPC to it over a UNIX socket. There is no
process manager of our own here, on purpose.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import resource
import shutil
import socket
import subprocess
import sys
import xmlrpc.client
from collections.abc import Generator, Mapping
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from configs.settings import Settings
from serving.errors import PlatformUnavailable, ServingError, SetupError
from serving.processes import STACK_VARIABLE, is_alive, stack_processes, stop_processes, wait_until
from serving.programs import Program, ini_path, render_script, render_section

_ANSWER_WAIT_S = 15.0
_OPEN_FILES_WANTED = 65_536
_LOG_BYTES_MAX = 50_000_000
_RUNNING = frozenset({"STARTING", "RUNNING", "BACKOFF"})
_BAD_NAME = 10
_ALREADY_ADDED = 90
_ALREADY_STARTED = 60
_NOT_RUNNING = 70

_LAUNCHER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD, signal.SIGPIPE):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Restores default signals: a shell's background job ignores SIGINT, children inherit that, and a
Prefect worker that ignores SIGINT ignores SIGTERM too."""


class SupervisorUnavailable(PlatformUnavailable):
    """supervisord does not answer on its socket: the stack is not up."""


class ProgramRefused(ServingError):
    """supervisord refused a command about a program."""


@dataclass(frozen=True, slots=True)
class ProgramState:
    """What supervisord says of one program. `pid` is 0 when no process runs."""

    name: str
    state: str
    pid: int
    uptime_s: float
    detail: str

    @property
    def is_up(self) -> bool:
        """Running, and past its start time."""
        return self.state == "RUNNING"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__()
        self._path = str(path)
        self._timeout_s = timeout_s

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        connection = _UnixConnection(self._path, self._timeout_s)
        self._connection = (None, connection)  # where close() looks for it
        return connection


class Supervisor:
    """The one supervisord of a stack, found by its settings' `run_dir`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._run_dir = settings.run_dir
        self._programs_dir = settings.run_dir / "supervisor.d"
        self._socket = settings.run_dir / "supervisor.sock"
        self._pid_file = settings.run_dir / "supervisord.pid"
        self._log = settings.logs_dir / "supervisord.log"

    def is_running(self) -> bool:
        """Whether supervisord answers."""
        try:
            self._call("supervisor.getState", timeout_s=5)
        except SupervisorUnavailable:
            return False
        return True

    def start_daemon(self) -> None:
        """Start supervisord unless it runs. It outlives the caller.

        Programs that an earlier supervisord was keeping are started again by the new one; processes
        that outlived a killed supervisord are stopped first, because nobody watches them any more.
        Raises SetupError when it does not come up.
        """
        self._make_folders()
        with self._lock():
            if self.is_running():
                return
            stop_processes(stack_processes(self._run_dir), wait_s=5)
            self._write_daemon_config()
            self._spawn_daemon()

    def ensure(self, program: Program) -> None:
        """Have this program running exactly as described. Repeating it changes nothing.

        A changed description restarts it; a stopped or failed one is started. Returns once
        supervisord has accepted it, not once it is healthy. Raises SupervisorUnavailable,
        ProgramRefused.
        """
        script = render_script(program, self._pid_path(program.name))
        section = render_section(program, self._script_path(program.name), script)
        with self._lock():
            program.log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # no reason not to start
                bound_log(program.log_path)
            _write_private(self._script_path(program.name), script)
            _write_private(self._section_path(program.name), section)
            if program.name in self._changed_by_reread():
                self._drop(program.name, wait_s=program.stop_wait_s)
            self._tolerate((_ALREADY_ADDED,), "supervisor.addProcessGroup", program.name)
            state = self.processes().get(program.name)
            if state is None or state.state not in _RUNNING:
                self._tolerate((_ALREADY_STARTED,), "supervisor.startProcess", program.name, False)

    def restart(self, name: str) -> None:
        """Stop and start one program as it stands. Raises ProgramRefused for an unknown one."""
        with self._lock():
            self._tolerate((_NOT_RUNNING,), "supervisor.stopProcess", name, True)
            self._tolerate((_ALREADY_STARTED,), "supervisor.startProcess", name, False)

    def remove(self, name: str, *, wait_s: float = _ANSWER_WAIT_S) -> None:
        """Stop a program, wait until it is gone, and forget it. A no-op for an unknown one.

        `wait_s` is the program's own `stop_wait_s`, where that is long.
        """
        with self._lock():
            if self.is_running():
                self._drop(name, wait_s=wait_s)
            self._forget(name)

    def processes(self) -> dict[str, ProgramState]:
        """Every program's state by name; empty when supervisord does not run."""
        try:
            rows = cast("list[dict[str, Any]]", self._call("supervisor.getAllProcessInfo"))
        except SupervisorUnavailable:
            return {}
        return {str(row["name"]): _program_state(row) for row in rows}

    def states(self) -> dict[str, str]:
        """supervisord's word for each program: RUNNING, STARTING, BACKOFF, EXITED, FATAL, STOPPED."""
        return {name: process.state for name, process in self.processes().items()}

    def forget(self, names: frozenset[str]) -> None:
        """Delete the descriptions of stopped programs, so that a new supervisord does not start them."""
        for name in names:
            self._forget(name)

    def shutdown(self) -> None:
        """Stop every program and supervisord, and return once no process of the stack is left.

        Programs stay described: a later `start_daemon` starts them again. Works too when
        supervisord was killed and its programs were left behind.
        """
        self._make_folders()
        with self._lock():
            pid = self._daemon_pid()
            if self.is_running():
                self._stop_by_priority()
                with contextlib.suppress(SupervisorUnavailable):
                    self._call("supervisor.shutdown")
                wait_until(lambda: pid is None or not is_alive(pid), _ANSWER_WAIT_S)
            stop_processes(stack_processes(self._run_dir), wait_s=5)
            self._socket.unlink(missing_ok=True)

    def _forget(self, name: str) -> None:
        for path in (self._section_path(name), self._script_path(name), self._pid_path(name)):
            path.unlink(missing_ok=True)

    def _stop_by_priority(self) -> None:
        waves: dict[int, list[tuple[str, float]]] = {}
        for name, process in self.processes().items():
            if process.state in _RUNNING or process.state == "STOPPING":
                priority, stop_wait_s = self._stopping(name)
                waves.setdefault(priority, []).append((name, stop_wait_s))
        for priority in sorted(waves, reverse=True):
            wave = waves[priority]
            for name, _ in wave:
                self._tolerate((_NOT_RUNNING, _BAD_NAME), "supervisor.stopProcess", name, False)
            names = {name for name, _ in wave}
            longest_s = max(stop_wait_s for _, stop_wait_s in wave)
            wait_until(lambda left=names: not self._any_up(left), longest_s + 5)

    def _any_up(self, names: set[str]) -> bool:
        states = self.states()
        return any(states.get(name) in {"STOPPING", *_RUNNING} for name in names)

    def _stopping(self, name: str) -> tuple[int, float]:
        parser = RawConfigParser()
        parser.read(self._section_path(name))
        section = f"program:{name}"
        return (
            parser.getint(section, "priority", fallback=500),
            parser.getfloat(section, "stopwaitsecs", fallback=10.0),
        )

    def _changed_by_reread(self) -> set[str]:
        answer = cast("list[list[list[str]]]", self._call("supervisor.reloadConfig"))
        return set(answer[0][1])

    def _drop(self, name: str, *, wait_s: float) -> None:
        self._tolerate((_NOT_RUNNING, _BAD_NAME), "supervisor.stopProcess", name, True, timeout_s=wait_s + 30)
        self._tolerate((_BAD_NAME,), "supervisor.removeProcessGroup", name)

    def _tolerate(self, faults: tuple[int, ...], method: str, *arguments: Any, timeout_s: float = 60) -> None:
        """Call, and take these faults as success: what was asked for is already so."""
        try:
            self._call(method, *arguments, timeout_s=timeout_s)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in faults:
                raise ProgramRefused(
                    f"{method}({arguments[0] if arguments else ''}) was refused: {fault.faultString}. "
                    f"Next: read {self._log}"
                ) from fault

    def _call(self, method: str, *arguments: Any, timeout_s: float = 60) -> object:
        transport = _UnixTransport(self._socket, timeout_s)
        proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport, allow_none=True)
        try:
            return getattr(proxy, method)(*arguments)
        except xmlrpc.client.Fault:
            raise
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise SupervisorUnavailable(
                f"supervisord does not answer on {self._socket}: {error}. Next: interlock up"
            ) from error
        finally:
            transport.close()

    def _make_folders(self) -> None:
        for folder in (self._settings.state, self._settings.logs_dir, self._run_dir, self._programs_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = self._run_dir.stat().st_uid
        if owner != os.getuid():
            raise SetupError(
                f"{self._run_dir} belongs to user {owner}, not to {os.getuid()}. "
                "Next: choose another INTERLOCK_STATE_DIR, or remove that folder"
            )

    @contextlib.contextmanager
    def _lock(self) -> Generator[None]:
        """One change at a time, across processes: the file and supervisord's view must agree."""
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._run_dir / "supervisor.lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _section_path(self, name: str) -> Path:
        return self._programs_dir / f"{name}.ini"

    def _pid_path(self, name: str) -> Path:
        return self._programs_dir / f"{name}.pid"

    def _script_path(self, name: str) -> Path:
        return self._programs_dir / f"{name}.sh"

    def _daemon_pid(self) -> int | None:
        try:
            return int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None

    def _write_daemon_config(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = _OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES_WANTED)
        text = "\n".join(
            (
                "[unix_http_server]",
                f"file={ini_path(self._socket)}",
                "chmod=0600",
                "[supervisord]",
                f"logfile={ini_path(self._log)}",
                "logfile_maxbytes=5MB",
                "logfile_backups=1",
                f"pidfile={ini_path(self._pid_file)}",
                f"childlogdir={ini_path(self._settings.logs_dir)}",
                f"directory={ini_path(Path.cwd())}",
                f"minfds={files}",
                "umask=077",
                "nocleanup=true",
                "[rpcinterface:supervisor]",
                "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
                "[include]",
                "files=supervisor.d/*.ini",
                "",
            )
        )
        _write_private(self._run_dir / "supervisord.conf", text)

    def _spawn_daemon(self) -> None:
        command = [sys.executable, "-c", _LAUNCHER, sys.executable, "-m", "supervisor.supervisord"]
        started = subprocess.run(
            [*command, "-c", str(self._run_dir / "supervisord.conf")],
            env={**os.environ, STACK_VARIABLE: str(self._run_dir)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
            check=False,
        )
        if started.returncode != 0 or not wait_until(self.is_running, _ANSWER_WAIT_S):
            said = (started.stderr or started.stdout).strip() or f"nothing; see {self._log}"
            raise SetupError(f"supervisord did not start (exit status {started.returncode}); it said: {said}")


def _program_state(row: Mapping[str, Any]) -> ProgramState:
    is_alive = int(row["pid"]) > 0
    uptime_s = float(row["now"] - row["start"]) if is_alive else 0.0
    detail = str(row["description"]) if is_alive else str(row["spawnerr"] or row["description"])
    return ProgramState(str(row["name"]), str(row["statename"]), int(row["pid"]), uptime_s, detail)


def _write_private(path: Path, text: str) -> None:
    """Replace a file whole, mode 0600: nobody ever reads half of it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(text)
    fresh.replace(path)


def bound_log(log_path: Path) -> bool:
    """Empty a log that is large, and keep its end beside it (`.1`); whether it was large.

    Its writer goes on where it is: programs append, so the next line is the first of the emptied file.
    """
    if not log_path.is_file() or log_path.stat().st_size <= _LOG_BYTES_MAX:
        return False
    with log_path.open("rb") as log, log_path.with_name(f"{log_path.name}.1").open("wb") as aside:
        log.seek(-_LOG_BYTES_MAX, os.SEEK_END)
        shutil.copyfileobj(log, aside)
    os.truncate(log_path, 0)
    return True
