"""The whole stack, really: MLflow, Prefect with worker, gateway and receiver, from up to down."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from configs.settings import Settings
from serving.processes import stack_processes
from serving.secret_files import Secret, read_or_create
from serving.stack import STACK_PROGRAMS, is_healthy, is_port_free, servers_of
from serving.supervision import Supervisor
from tasks.rest import prefect_api
from tests.configs.policies import VALID
from tests.serving.hook.deliveries import alias_event, headers
from tests.serving.stack.conftest import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("real-stack")]


def eventually(condition: Callable[[], Any], wait_s: float) -> Any:
    deadline = time.monotonic() + wait_s
    while True:
        found = condition()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.3)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Settings]:
    """A stack that is up, with one policy; afterwards nothing of it is left."""
    from tasks.stack import down, up

    folder = tmp_path_factory.mktemp("stack")
    (folder / "policies").mkdir()
    (folder / "policies" / "flights.yaml").write_text(VALID)
    gateway, metrics, hook, mlflow, prefect = free_ports(5)
    settings = Settings(
        state_dir=folder / "state",
        policy_dir=folder / "policies",
        gateway_port=gateway,
        gateway_metrics_port=metrics,
        hook_port=hook,
        mlflow_port=mlflow,
        prefect_port=prefect,
        mlflow_tracking_uri=None,
        prefect_api_url=None,
    )
    said: list[str] = []
    try:
        report = up(settings, said.append)
        assert report.warnings == ()
        assert len(said) == 7, said
        yield settings
    finally:
        down(settings)
    assert stack_processes(settings.run_dir) == []
    ports = [port for server in servers_of(settings) for port in server.ports]
    assert all(is_port_free(settings.host, port) for port in ports)


def prefect(stack: Settings, path: str, body: object = None) -> Any:
    return prefect_api(stack).call("GET" if body is None else "POST", path, body, repeatable=True)


def mlflow(stack: Settings, path: str, body: object, method: str = "POST") -> dict[str, Any]:
    reply = httpx.request(method, f"{stack.mlflow_url}/api/2.0/mlflow{path}", json=body, timeout=30)
    reply.raise_for_status()
    return reply.json()


def runs_of(stack: Settings, deployment: str) -> list[dict[str, Any]]:
    filter_: dict[str, Any] = {"deployments": {"name": {"any_": [deployment]}}, "limit": 200}
    return prefect(stack, "/flow_runs/filter", filter_)


def test_up_again_changes_nothing(stack: Settings) -> None:
    from tasks.stack import up

    before = {name: process.pid for name, process in Supervisor(stack).processes().items()}
    assert set(before) == STACK_PROGRAMS
    said: list[str] = []
    up(stack, said.append)
    assert {name: process.pid for name, process in Supervisor(stack).processes().items()} == before
    assert any("webhook in place" in line for line in said)
    assert any("automations in place" in line for line in said)
    automations = [row["name"] for row in prefect(stack, "/automations/filter", {})]
    assert sorted(automations) == [
        "interlock candidate requested",
        "interlock release died",
        "interlock release fell silent",
    ]


def test_the_doctor_finds_it_well(stack: Settings) -> None:
    from tasks.doctor import examine

    findings = eventually(lambda: (found := examine(stack)) and all(it.ok for it in found) and found, 60)
    assert findings, [finding for finding in examine(stack) if not finding.ok]
    assert {"registry webhook", "deployments", "flow worker", "haproxy"} <= {it.check for it in findings}


def test_the_schedule_makes_runs(stack: Settings) -> None:
    """With SQLAlchemy 2.1 Prefect's scheduler silently makes none."""
    assert eventually(lambda: [run for run in runs_of(stack, "reconcile") if run["auto_scheduled"]], 90)
    assert runs_of(stack, "guard") == [], "the gateway holds the lease: a guard would only cost"


def test_an_alias_in_mlflow_starts_one_typed_release(stack: Settings) -> None:
    mlflow(stack, "/registered-models/create", {"name": "delays"})
    run = mlflow(stack, "/runs/create", {"experiment_id": "0"})["run"]["info"]
    source = {"name": "delays", "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
    version = mlflow(stack, "/model-versions/create", source)["model_version"]["version"]
    for alias in ("champion", "candidate"):
        mlflow(stack, "/registered-models/alias", {"name": "delays", "alias": alias, "version": version})
    runs = eventually(lambda: runs_of(stack, "release"), 90)
    assert [run["parameters"] for run in runs] == [
        {"endpoint": "flights", "version": int(version), "prompt": 0}
    ]


def test_a_duplicate_past_a_restarted_receiver_starts_nothing(stack: Settings) -> None:
    before = len(runs_of(stack, "release"))
    body, delivery_id = alias_event(version="41"), str(uuid.uuid4())

    def deliver() -> int:
        secret = read_or_create(stack, Secret.WEBHOOK).encode()
        signed = headers(body, delivery_id=delivery_id, at=time.time(), secret=secret)
        return httpx.post(stack.hook_url, content=body, headers=signed, timeout=30).status_code

    assert deliver() == 200
    assert eventually(lambda: len(runs_of(stack, "release")) == before + 1, 90)
    kill_and_wait(stack, "hook")
    assert deliver() == 200
    mark = alias_event(version="42")
    signed = headers(mark, at=time.time(), secret=read_or_create(stack, Secret.WEBHOOK).encode())
    assert httpx.post(stack.hook_url, content=mark, headers=signed, timeout=30).status_code == 200

    def versions() -> list[int]:
        return [run["parameters"]["version"] for run in runs_of(stack, "release")]

    assert eventually(lambda: 42 in versions(), 90)
    assert (len(versions()), versions().count(41)) == (before + 2, 1)


@pytest.mark.parametrize("name", ["gateway", "hook", "worker", "mlflow", "prefect"])
def test_a_killed_program_recovers_by_itself(stack: Settings, name: str) -> None:
    kill_and_wait(stack, name)


def kill_and_wait(stack: Settings, name: str) -> None:
    supervisor = Supervisor(stack)
    server = next(server for server in servers_of(stack) if server.name == name)
    pid = supervisor.processes()[name].pid
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: supervisor.processes()[name].pid not in (0, pid), 60)
    # workers that the killed leader left behind may still answer: their answers are no recovery
    assert eventually(lambda: not group_exists(pid), 30)
    assert eventually(lambda: is_healthy(server, supervisor.states()[name]), 180)


STAND_IN = """
import time
from prefect import flow

@flow(name="release")
def release(endpoint: str):
    time.sleep(600)
"""


@pytest.mark.e2e
def test_a_release_that_falls_silent_is_found_and_made_safe(stack: Settings) -> None:
    """Worker and flow die together: nobody reports it, and only the missing heartbeat tells."""
    (stack.state / "stand_in.py").write_text(STAND_IN)
    flow_id = prefect(stack, "/flows/", {"name": "release"})["id"]
    deployment = {
        "name": "stand-in",
        "flow_id": flow_id,
        "entrypoint": "stand_in.py:release",
        "path": str(stack.state),
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(stack.state)}}],
        "work_pool_name": stack.work_pool,
    }
    deployment_id = prefect(stack, "/deployments/", deployment)["id"]
    run = prefect(stack, f"/deployments/{deployment_id}/create_flow_run", {"parameters": {"endpoint": "x"}})

    def state() -> str:
        return prefect(stack, f"/flow_runs/{run['id']}")["state_name"]

    def beats() -> int:
        filter_ = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run['id']}"]},
        }
        return prefect(stack, "/events/filter", {"filter": filter_})["total"]

    assert eventually(lambda: state() == "Running", 90)
    assert eventually(lambda: beats() >= 1, 120), "without a first heartbeat nothing could be missed"
    worker = Supervisor(stack).processes()["worker"].pid
    for pid in [worker, *flow_processes(run["id"])]:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: state() == "Crashed", 240)
    safe = eventually(lambda: runs_of(stack, "make-safe"), 60)
    assert [made["parameters"] for made in safe] == [{"flow_run_id": run["id"]}]


def flow_processes(flow_run_id: str) -> list[int]:
    """Processes that carry the flow run's id in their environment."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if flow_run_id.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def group_exists(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_command_line_sees_it(stack: Settings) -> None:
    environment = {**os.environ, **stack.as_environment()}

    def interlock(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    found = json.loads(interlock("status", "--json").stdout)
    assert {row["program"] for row in found["stack"]} == STACK_PROGRAMS
    assert [row["endpoint"] for row in found["endpoints"]] == ["flights"]
    assert interlock("logs", "hook").stdout != ""
    made = json.loads(interlock("keys", "create", "acme", "--json").stdout)
    assert [key["id"] for key in json.loads(interlock("keys", "list", "--json").stdout)] == [made["id"]]
    assert made["key"] not in (stack.gateway_dir / "keys.json").read_text()
    revoked = interlock("keys", "revoke", "acme")
    assert revoked.returncode == 0
    assert made["id"] in revoked.stdout
    assert interlock("keys", "revoke", "acme").returncode == 5
    refused = interlock("rollback", "flights", "--reason", "a test")
    assert refused.returncode == 5, refused
