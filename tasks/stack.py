"""Brings the whole local stack up and down: processes first, then what the servers must know.

Both can be repeated: `up` on a running stack changes only what differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from configs.loading import load_policies
from configs.settings import Settings
from serving.gateway.process import tls_warning
from serving.gateway.render import refresh_gateway
from serving.secret_files import Secret, read_or_create
from serving.stack import Server, describe_stack, servers_of, start_supervision, wait_healthy
from serving.supervision import Supervisor
from tasks import registration
from tasks.guard_schedule import is_guard_needed, schedule_guard

Progress = Callable[[str], None]
"""Gets one line for people, as each thing is done."""


@dataclass(frozen=True, slots=True)
class StackUp:
    """A running stack: its addresses, how long it took, and what should be looked at."""

    gateway_url: str
    mlflow_url: str
    prefect_url: str
    seconds: float
    warnings: tuple[str, ...]


def up(settings: Settings, progress: Progress) -> StackUp:
    """Start what is missing and register what the servers lack; return when all of it serves.

    Raises `serving.errors.SetupError` for what a person must mend first (a taken port),
    `NotHealthy` with the log's end for a server that does not come up.
    """
    started = time.monotonic()
    warnings = _warnings(settings)
    servers = {server.name: server for server in servers_of(settings)}
    supervisor = start_supervision(settings, tuple(servers.values()))
    for secret in Secret:
        read_or_create(settings, secret)
    policies, _ = load_policies(settings.policy_folder)
    refresh_gateway(settings, [policy for policy in policies.values() if policy.platform == "local"])
    for name, server in servers.items():
        if name != "worker":
            supervisor.ensure(server.describe())

    def wait_for(*names: str) -> None:
        waited = [servers[name] for name in names if name in servers]
        wait_healthy(waited, supervisor, lambda server, seconds: progress(_line(server, seconds)))

    def follow_mlflow() -> None:
        wait_for("mlflow")
        is_new = registration.register_webhook(settings)
        progress(f"registry webhook {'registered' if is_new else 'in place'} at {settings.mlflow_url}")

    def follow_prefect() -> None:
        wait_for("prefect")
        registration.register_work_pool(settings)
        supervisor.ensure(servers["worker"].describe())
        changed = registration.register_deployments(settings)
        schedule_guard(settings, is_needed=is_guard_needed(policies.values()))
        registration.register_zombie_automation(settings)
        progress(
            f"deployments and automations {'registered' if changed else 'in place'} at {settings.prefect_url}"
        )
        wait_for("worker")

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="stack-up") as pool:
        jobs = [pool.submit(follow_mlflow), pool.submit(follow_prefect)]
        wait_for("gateway", "hook")
        for job in jobs:
            job.result()
    seconds = time.monotonic() - started
    return StackUp(settings.gateway_url, settings.mlflow_url, settings.prefect_url, seconds, warnings)


def down(settings: Settings) -> bool:
    """Stop every process of the stack; returns whether any was running. Data and settings stay.

    Servers that the user runs are left alone, and so is what was registered with them.
    """
    supervisor = Supervisor(settings)
    was_running = supervisor.is_running()
    supervisor.shutdown()
    return was_running


def _line(server: Server, seconds: float) -> str:
    where = f" on port {server.ports[0]}" if server.ports else ""
    return f"{server.title}{where} is up ({seconds:.1f} s)"


def _warnings(settings: Settings) -> tuple[str, ...]:
    _, errors = load_policies(settings.policy_folder)
    tls = tls_warning(settings)
    return (*(str(error) for error in errors), *((tls,) if tls else ()))


def stack_programs(settings: Settings) -> list[dict[str, Any]]:
    """Every program with its state, pid and uptime, and servers of the user's own, as plain values."""
    return describe_stack(settings)
