"""What the local stack is made of, and how it comes up and goes down.

This module knows programs, ports and health checks, nothing of flows: registering webhooks and
deployments is `tasks/stack.py`. Servers that the user already runs (MLFLOW_TRACKING_URI,
PREFECT_API_URL) are used and never started, stopped or configured.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from configs.settings import Settings
from serving.errors import NotHealthy, SetupError
from serving.programs import Program
from serving.secret_files import Secret, read_or_create
from serving.supervision import Supervisor
from serving.upstream import is_loopback

PROJECT_DIR = Path(__file__).resolve().parent.parent
"""Where prefect.yaml and the rooms are."""

_EXCERPT_LINES = 15
_SERVER_START_S = 300.0
_ENDINGS_MAX = 3
"""A program that ended this often while we waited will not come up by waiting longer."""
_FIRST_STOPPED = 900
_LAST_STOPPED = 100


@dataclass(frozen=True, slots=True)
class Server:
    """One program of the stack with the way to see that it serves.

    `name` is the program's, `describe` makes its whole description, secrets included, when it is
    to be started. `ports` are those that it binds. `health_url` is None for a program without
    one (the worker): it counts as healthy once supervisord calls it running.
    """

    name: str
    title: str
    describe: Callable[[], Program]
    log_path: Path
    ports: tuple[int, ...] = ()
    health_url: str | None = None
    start_timeout_s: float = _SERVER_START_S


def mlflow_program(settings: Settings) -> Program:
    """MLflow with SQLite and local artifacts; webhooks to plain loopback addresses allowed."""
    home = settings.state / "mlflow"
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", settings.host),
        *("--port", str(settings.mlflow_port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}"),
        *("--artifacts-destination", str(home / "artifacts")),
    )
    environment = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": read_or_create(settings, Secret.MLFLOW_FERNET),
        # the list of webhooks is cached for a minute by default: a new one would miss its first events
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
        # 0, 0, 2, 4, 8 and 16 seconds and jitter: outlives a restart of the receiver
        "MLFLOW_WEBHOOK_REQUEST_MAX_RETRIES": "5",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        # the server is no client of itself
        "MLFLOW_TRACKING_URI": "",
    }
    return Program(
        "mlflow",
        command,
        environment,
        settings.logs_dir / "mlflow.log",
        stop_wait_s=10,
        start_s=2,
        directory=home,
        priority=_LAST_STOPPED,
    )


def prefect_program(settings: Settings) -> Program:
    """Prefect's server with its own home and SQLite database under the state folder."""
    home = settings.state / "prefect"
    command = (
        *(sys.executable, "-m", "prefect", "server", "start", "--no-prompt"),
        *("--host", settings.host, "--port", str(settings.prefect_port)),
    )
    environment = prefect_environment(settings) | {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # how long a schedule's next runs may take to appear
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "20",
        "DO_NOT_TRACK": "1",
    }
    return Program(
        "prefect",
        command,
        environment,
        settings.logs_dir / "prefect.log",
        stop_wait_s=15,
        start_s=2,
        directory=home,
        priority=_LAST_STOPPED,
    )


def worker_program(settings: Settings) -> Program:
    """The process worker that runs the flows. Stopped first, while the servers can still hear it."""
    command = (
        *(sys.executable, "-m", "prefect", "worker", "start", "--no-prompt"),
        *(
            "--pool",
            settings.work_pool,
            "--type",
            "process",
            "--name",
            f"{settings.work_pool}-{socket.gethostname()}",
        ),
    )
    environment = (
        settings.as_environment()
        | prefect_environment(settings)
        | {
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
        }
    )
    return Program(
        "worker",
        command,
        environment,
        settings.logs_dir / "worker.log",
        stop_wait_s=25,
        start_s=2,
        directory=PROJECT_DIR,
        priority=_FIRST_STOPPED,
    )


def hook_program(settings: Settings) -> Program:
    """The receiver of MLflow's registry webhooks."""
    read_or_create(settings, Secret.WEBHOOK)
    return Program(
        "hook",
        (sys.executable, "-m", "serving.hook"),
        settings.as_environment(),
        settings.logs_dir / "hook.log",
        start_s=1,
        directory=PROJECT_DIR,
        priority=_FIRST_STOPPED,
    )


def prefect_environment(settings: Settings) -> dict[str, str]:
    """What keeps this stack's Prefect apart from the user's own profiles and home."""
    home = settings.state / "prefect"
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": settings.prefect_url,
    }


def servers_of(settings: Settings) -> tuple[Server, ...]:
    """All servers of this stack in the order of starting; the worker, which needs its pool, last."""
    from serving.gateway.process import gateway_program

    def server(
        name: str, title: str, make: Callable[[Settings], Program], *ports: int | None, health: str | None
    ) -> Server:
        bound = tuple(port for port in ports if port is not None)
        return Server(name, title, partial(make, settings), settings.logs_dir / f"{name}.log", bound, health)

    mlflow_health, prefect_health = f"{settings.mlflow_url}/health", f"{settings.prefect_url}/health"
    gateway_ports = (settings.gateway_port, settings.gateway_metrics_port, settings.gateway_tls_port)
    gateway_health = f"http://{settings.host}:{settings.gateway_metrics_port}/metrics"
    hook_health = f"http://{settings.host}:{settings.hook_port}/health"
    own: list[Server] = []
    if settings.starts_mlflow:
        own.append(
            server("mlflow", "MLflow server", mlflow_program, settings.mlflow_port, health=mlflow_health)
        )
    if settings.starts_prefect:
        own.append(
            server("prefect", "Prefect server", prefect_program, settings.prefect_port, health=prefect_health)
        )
    return (
        *own,
        server("gateway", "gateway", gateway_program, *gateway_ports, health=gateway_health),
        server("hook", "registry-hook receiver", hook_program, settings.hook_port, health=hook_health),
        server("worker", "Prefect worker", worker_program, health=None),
    )


STACK_PROGRAMS = frozenset({"mlflow", "prefect", "gateway", "hook", "worker"})
"""Names of the stack's own programs; every other supervised program is a replica."""


def start_supervision(settings: Settings, servers: Sequence[Server]) -> Supervisor:
    """Prepare folders, refuse taken ports, start supervisord, and return it.

    Raises SetupError that names each taken port and what wanted it.
    """
    supervisor = Supervisor(settings)
    _make_folders(settings)
    _require_http(settings)
    states = supervisor.states()
    taken = [
        f"port {port} ({server.title})"
        for server in servers
        if states.get(server.name) not in {"RUNNING", "STARTING"}
        for port in server.ports
        if not is_port_free(settings.host, port)
    ]
    if taken:
        raise SetupError(
            f"Asked for {', '.join(taken)} on {settings.host}, but another process listens there. "
            f"Next: stop it, or choose other ports (INTERLOCK_GATEWAY_PORT and so on; see configs/local.yaml)"
        )
    if not states:
        supervisor.forget(STACK_PROGRAMS)
    supervisor.start_daemon()
    return supervisor


def wait_healthy(
    servers: Iterable[Server], supervisor: Supervisor, on_healthy: Callable[[Server, float], None]
) -> None:
    """Return once every server answers; `on_healthy(server, seconds)` as each one does.

    Raises NotHealthy with the log's last lines for one that does not in its time, that ends again
    and again, or that supervisord gave up on.
    """
    started = time.monotonic()
    waiting = list(servers)
    pids: dict[str, set[int]] = {server.name: set() for server in waiting}
    while waiting:
        processes = supervisor.processes()
        elapsed_s = time.monotonic() - started
        for server in tuple(waiting):
            process = processes.get(server.name)
            state = process.state if process else "UNKNOWN"
            pids[server.name].add(process.pid if process else 0)
            if is_healthy(server, state):
                waiting.remove(server)
                on_healthy(server, elapsed_s)
            elif (
                state == "FATAL"
                or elapsed_s > server.start_timeout_s
                or len(pids[server.name] - {0}) > _ENDINGS_MAX
            ):
                raise NotHealthy(_failure(server, state, elapsed_s))
        if waiting:
            time.sleep(0.2)


def is_healthy(server: Server, state: str) -> bool:
    """Whether supervisord keeps it and its health check answers."""
    if server.health_url is None:
        return state == "RUNNING"
    return state in {"RUNNING", "STARTING"} and answers(server.health_url)


def answers(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a GET brings any answer below 500."""
    import httpx

    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=timeout_s, trust_env=not is_loopback(url)).status_code < 500
    return False


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could bind the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def log_tail(path: Path, lines: int) -> str:
    """The last lines of a log; empty where there is none."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - 65_536))
            return "\n".join(handle.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def describe_stack(settings: Settings) -> list[dict[str, Any]]:
    """Every supervised program with state, pid and uptime, plus external servers, for display."""
    rows = [
        {
            "program": process.name,
            "state": process.state,
            "pid": process.pid,
            "uptime_s": round(process.uptime_s),
            "detail": process.detail,
        }
        for process in Supervisor(settings).processes().values()
    ]
    external = (
        ("mlflow", settings.starts_mlflow, f"{settings.mlflow_url}/health"),
        ("prefect", settings.starts_prefect, f"{settings.prefect_url}/health"),
    )
    for name, is_own, url in external:
        if not is_own:
            state = "EXTERNAL" if answers(url) else "UNREACHABLE"
            rows.append({"program": name, "state": state, "pid": 0, "uptime_s": 0, "detail": url})
    return rows


def _make_folders(settings: Settings) -> None:
    folders = (settings.state, settings.secrets_dir, settings.logs_dir, settings.gateway_dir)
    try:
        for folder in (*folders, settings.state / "mlflow", settings.state / "prefect"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"The state folder {settings.state} cannot be written: {error.strerror}. "
            f"Next: set INTERLOCK_STATE_DIR to a folder of yours"
        ) from error
    if not os.access(settings.state, os.W_OK | os.X_OK):
        raise SetupError(f"The state folder {settings.state} is not writable. Next: set INTERLOCK_STATE_DIR")


def _require_http(settings: Settings) -> None:
    for variable, url in (
        ("MLFLOW_TRACKING_URI", settings.mlflow_url),
        ("PREFECT_API_URL", settings.prefect_url),
    ):
        if urlsplit(url).scheme not in {"http", "https"}:
            raise SetupError(
                f"{variable}={url} is not a server's address, and Interlock needs a server "
                f"(webhooks, events). Next: unset it to have one started, or give an http(s) URL"
            )


def _failure(server: Server, state: str, elapsed_s: float) -> str:
    tail = log_tail(server.log_path, _EXCERPT_LINES)
    return (
        f"The {server.title} was asked to serve {server.health_url or 'flows'}, but after "
        f"{elapsed_s:.0f} s it does not (supervisord: {state}). Last lines of {server.log_path}:\n{tail}\n"
        f"Next: interlock logs {server.name}; interlock doctor"
    )
