"""A real stack with small models and a steady stream of requests, for tests of whole releases."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from configs.settings import Settings
from tests.serving.stack.conftest import free_ports

INTERLOCK = (sys.executable, "-c", "from flows.cli import main; main()")

POLICY = """
endpoint: sums
model: sums
owner: e2e@example.com
replicas: {count: 1, start_timeout_s: 120, request_timeout_s: 10}
evaluation:
  data: held_out.csv
  label: target
  task: regression
  metrics: [{name: mae, max: 1.0, margin: 0.05}]
  min_rows: 50
shadow: {score_tolerance: 0.5, min_pairs: 60, rate_per_s: 40, timeout_s: 120}
canary:
  steps: [25, 95]
  bake_s: 12
  soak_s: 3
  min_units: 20
  look_every_s: 1
  settle_s: 1
  lease_s: 10
  window: {requests: 2, seconds: 1}
  errors: {tolerance: 0.05, margin: 0.15}
  latency: {tolerance: 5.0, margin: 5.0, quantiles: [p50]}
"""

MODEL = """
import time
from pathlib import Path

import mlflow
import pandas as pd


class Sum(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: pd.DataFrame, params=None):
        time.sleep(SLOW_S)
        if Path(BREAKS_ON).exists() and model_input["a"].between(0.2, 0.395).any():
            raise RuntimeError("cannot do these numbers any more")
        if FAILS and (model_input["a"] > 0.6).any():
            raise RuntimeError("cannot do large numbers")
        return (model_input["a"] + model_input["b"] + OFFSET).tolist()


mlflow.models.set_model(Sum())
"""

REGISTER = """
import sys
import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
mlflow.set_tracking_uri(sys.argv[1])
with mlflow.start_run():
    info = mlflow.pyfunc.log_model(
        name="model", python_model=sys.argv[2], pip_requirements=[],
        signature=ModelSignature(
            Schema([ColSpec("double", "a"), ColSpec("double", "b")]), Schema([ColSpec("double")])
        ),
        input_example=pd.DataFrame({"a": [0.1], "b": [0.2]}),
    )
for name in sys.argv[3:]:
    print("version", mlflow.register_model(info.model_uri, name).version)
"""


def own_settings(folder: Path) -> Settings:
    """A stack of its own: free ports, everything below `folder`, nobody else's servers."""
    gateway, metrics, hook, mlflow, prefect = free_ports(5)
    return Settings(
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


class Stand:
    """One stack, started and stopped by the command line as a user would."""

    def __init__(self, settings: Settings, policy: str = POLICY) -> None:
        self.settings = settings
        settings.policy_dir.mkdir(parents=True, exist_ok=True)
        (settings.policy_dir / "sums.yaml").write_text(policy)
        rows = ["a,b,target", *(f"{i / 200},{i / 100},{3 * i / 200}" for i in range(100))]
        (settings.policy_dir / "held_out.csv").write_text("\n".join(rows))

    def environment(self) -> dict[str, str]:
        """What points the command line at this stack."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))
        }
        return kept | self.settings.as_environment()

    def interlock(
        self, *arguments: str, check: bool = True, timeout_s: float = 400, user: str = "tester"
    ) -> str:
        """Run a command as somebody; its output."""
        done = subprocess.run(
            [*INTERLOCK, *arguments],
            env=self.environment() | {"LOGNAME": user},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def refused(self, *arguments: str, user: str = "tester") -> tuple[int, str]:
        """Run a command that does not succeed; its exit status and what it says of that."""
        done = subprocess.run(
            [*INTERLOCK, *arguments],
            env=self.environment() | {"LOGNAME": user},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode != 0, done.stdout
        return done.returncode, done.stderr

    def audit(self, what: str) -> list[dict[str, Any]]:
        """Lines of the trail of one kind, newest first."""
        lines = json.loads(self.interlock("history", "sums", "--audit", "--json"))
        return [line for line in lines if line["what"] == what]

    def register(
        self,
        *,
        offset: float = 0.0,
        fails: bool = False,
        breaks_on: Path = Path("/nonexistent"),
        slow_s: float = 0.0,
        user: str = "maker",
        models: Sequence[str] = ("sums",),
    ) -> str:
        """A new version of each of these models; its number. A fifth fails once `breaks_on` exists."""
        code = self.settings.state / f"model-{time.monotonic_ns()}.py"
        text = (
            MODEL.replace("OFFSET", str(offset)).replace("FAILS", str(fails)).replace("SLOW_S", str(slow_s))
        )
        code.write_text(text.replace("BREAKS_ON", repr(str(breaks_on))))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", REGISTER, self.settings.mlflow_url, str(code), *models],
            env=self.environment() | {"LOGNAME": user},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.split("version ")[1].split()[0]

    def alias(self, version: str) -> None:
        """Set `candidate`: all that a user does."""
        reply = httpx.post(
            f"{self.settings.mlflow_url}/api/2.0/mlflow/registered-models/alias",
            json={"name": "sums", "alias": "candidate", "version": version},
            timeout=30,
        )
        reply.raise_for_status()

    def aliases(self, model: str = "sums") -> dict[str, str]:
        """What MLflow says."""
        reply = httpx.get(
            f"{self.settings.mlflow_url}/api/2.0/mlflow/registered-models/get?name={model}", timeout=30
        )
        found = reply.json()["registered_model"].get("aliases", [])
        return {one["alias"]: one["version"] for one in found}

    def status(self, endpoint: str = "sums") -> dict[str, Any]:
        """`interlock status ENDPOINT --json`."""
        return json.loads(self.interlock("status", endpoint, "--json"))

    def history(self, endpoint: str = "sums") -> list[dict[str, Any]]:
        """`interlock history ENDPOINT --json`, newest first."""
        return json.loads(self.interlock("history", endpoint, "--json"))

    def await_release(
        self, version: str, wanted: Callable[[dict[str, Any]], bool], wait_s: float
    ) -> dict[str, Any]:
        """The newest release of a version once it is as wanted."""
        deadline = time.monotonic() + wait_s
        found: dict[str, Any] = {}
        while time.monotonic() < deadline:
            found = next((one for one in self.history() if one["version"] == version), {})
            if found and wanted(found):
                return found
            time.sleep(1)
        raise AssertionError(f"release of version {version} did not get there in {wait_s} s: {found}")

    def flow_state(self, release: dict[str, Any]) -> str:
        """The name of the state of a release's flow run in Prefect."""
        run_id = release["flow_run_url"].rsplit("/", 1)[1]
        reply = httpx.get(f"{self.settings.prefect_url}/flow_runs/{run_id}", timeout=30)
        return reply.json()["state"]["name"]

    def mlflow_runs(self, experiment: str) -> list[dict[str, Any]]:
        """An experiment's runs, newest first; each with its tags as a mapping."""
        api = f"{self.settings.mlflow_url}/api/2.0/mlflow"
        reply = httpx.get(
            f"{api}/experiments/get-by-name", params={"experiment_name": experiment}, timeout=30
        )
        asked = {"experiment_ids": [reply.json()["experiment"]["experiment_id"]], "max_results": 100}
        found = httpx.post(f"{api}/runs/search", json=asked, timeout=30).json()["runs"]
        return [
            {**run["info"], "tags": {tag["key"]: tag["value"] for tag in run["data"]["tags"]}}
            for run in found
        ]

    def schedule_is_on(self, deployment: str) -> bool:
        """Whether Prefect starts a deployment by the clock."""
        url = f"{self.settings.prefect_url}/deployments/name/{deployment}/{deployment}"
        return any(one["active"] for one in httpx.get(url, timeout=30).json()["schedules"])

    def program(self, name: str) -> dict[str, Any]:
        """One of the stack's own programs."""
        return next(one for one in self.programs() if one["program"] == name)

    def programs(self) -> list[dict[str, Any]]:
        """The stack's own programs."""
        return json.loads(self.interlock("status", "--json"))["stack"]

    def flow_process(self, flow_run_id: str) -> int:
        """The process id of a flow run, from the environment that its worker gave it."""
        marker = f"PREFECT__FLOW_RUN_ID={flow_run_id}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if marker in (folder / "environ").read_bytes() and b"prefect.engine" in (
                        folder / "cmdline"
                    ).read_bytes().replace(b"flow_engine", b"prefect.engine"):
                        return int(folder.name)
                except OSError:
                    continue
        raise AssertionError(f"no process runs flow run {flow_run_id}")


class Traffic:
    """Requests from a thread at a steady pace, with what came back: (time, status, version).

    `asked` has the gateway's id of each answered request and the sum that would have been right.
    `columns` are what clients send; without "b" the schema is broken.
    """

    def __init__(
        self, url: str, key: str, *, per_s: float = 40, columns: tuple[str, ...] = ("a", "b")
    ) -> None:
        self._columns = columns
        self.asked: list[tuple[str, float]] = []
        self._url = url
        self._key = key
        self._pause_s = 1 / per_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers: list[tuple[float, int, str]] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=15)

    def since(self, moment: float) -> Counter[tuple[int, str]]:
        """Answers to requests sent after a moment, by status and version."""
        return Counter((status, version) for at, status, version in self.answers if at > moment)

    def _run(self) -> None:
        number = 0
        with httpx.Client(timeout=15, trust_env=False) as client:
            while not self._stopped.wait(self._pause_s):
                number += 1
                row = [(number % 100) / 100, (number % 37) / 37]
                body = {"dataframe_split": {"columns": self._columns, "data": [row[: len(self._columns)]]}}
                at = time.time()
                try:
                    reply = client.post(
                        self._url,
                        json=body,
                        headers={"x-api-key": self._key, "x-user-id": f"user-{number % 20_000}"},
                    )
                    self.answers.append((at, reply.status_code, reply.headers.get("x-interlock-version", "")))
                    self.asked.append((reply.headers.get("x-request-id", ""), sum(row)))
                except httpx.HTTPError:
                    self.answers.append((at, 0, ""))


def promote(stand: Stand, version: str) -> None:
    """Set the alias, and wait for the release to promote the version."""
    stand.alias(version)
    ended = stand.await_release(version, lambda one: one["state"] != "RUNNING" and bool(one["ended_at"]), 300)
    assert ended["state"] == "PROMOTED", ended


def eventually(condition: Callable[[], object], wait_s: float, pause_s: float = 0.5) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {wait_s} s"
        time.sleep(pause_s)


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)
