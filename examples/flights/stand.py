"""The demo's own stack: its folder, its ports, its processes, and that none of them is left.

Everything goes through the command that a person would use (`interlock up`, `down`, `keys`),
with settings in the environment. Servers that the user runs elsewhere are left alone: the demo
uses none of them, so it cannot leave anything behind there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from configs.settings import Settings

ENDPOINT = "flights"
TENANT = "demo"
POLICY = Path(__file__).with_name("policies") / f"{ENDPOINT}.yaml"
PORTS = ("gateway_port", "gateway_metrics_port", "hook_port", "mlflow_port", "prefect_port")

_FOREIGN = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_API_KEY")
_KEPT = "INTERLOCK_HAPROXY"
_DOWN_WAIT_S = 90


class DemoFailed(RuntimeError):
    """The demo cannot go on; the message says what was wanted, what was found, and where to look."""


class Stand:
    """The stack of one state folder. Making it changes nothing yet, except free ports being chosen."""

    def __init__(
        self, state_dir: Path, *, endpoint: str = ENDPOINT, policy: Path = POLICY, **more: Any
    ) -> None:
        self.state = state_dir.expanduser().resolve()
        self.endpoint = endpoint
        self._policy = policy
        for name in [*os.environ]:
            if name in _FOREIGN or (name.startswith("INTERLOCK_") and name != _KEPT):
                del os.environ[name]
        self.state.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(
            state_dir=self.state, policy_dir=self.state / "policies", **self._ports(), **more
        )
        self.environment = {**os.environ, **self.settings.as_environment()}
        self._children: list[subprocess.Popen[Any]] = []

    @property
    def data_dir(self) -> Path:
        """The prepared flights."""
        return self.state / "data"

    @property
    def traffic_dir(self) -> Path:
        """What the load generator writes."""
        return self.state / "traffic"

    @property
    def url(self) -> str:
        """Where the travellers ask."""
        return f"{self.settings.gateway_url}/{self.endpoint}/invocations"

    def write_policy(self, held_out: Path) -> Path:
        """Put the demo's policy where this stack looks for policies, with this stack's data."""
        import yaml

        text = self._policy.read_text()
        named = yaml.safe_load(text)["evaluation"]["data"]
        target = self.settings.policy_path(self.endpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace(f"data: {named}", f"data: {held_out}"))
        return target

    def up(self, told: Callable[[str], None]) -> None:
        """`interlock up`, line by line; once more where it failed, for it goes on where it stopped.

        A busy machine may make a server too slow at first. Raises `DemoFailed` with the last words.
        """
        for attempt in ("first", "second"):
            process = self._start("up", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            lines: list[str] = []
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                told(lines[-1])
            if process.wait() == 0:
                return
            if process.returncode < 0:  # ended by us
                break
            told(f"the {attempt} `interlock up` ended with status {process.returncode}")
        raise DemoFailed("The stack did not come up:\n" + "\n".join(lines[-15:]))

    def wait_for_mlflow(self, timeout_s: float, failed: Callable[[], bool]) -> None:
        """Until MLflow answers; `failed` says that waiting is in vain."""
        import httpx

        deadline = time.monotonic() + timeout_s
        with httpx.Client(timeout=2, trust_env=False) as client:
            while time.monotonic() < deadline and not failed():
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"{self.settings.mlflow_url}/health").status_code == httpx.codes.OK:
                        return
                time.sleep(0.3)
        raise DemoFailed(
            f"MLflow does not answer at {self.settings.mlflow_url}. Next: look into {self.log('mlflow')}"
        )

    def api_key_file(self) -> Path:
        """A file with an API key that works; a new key where the old one is not known any more."""
        path = self.settings.secrets_dir / f"{TENANT}.key"
        stamp = path.with_suffix(".id")
        known = {key["id"] for key in json.loads(self.run("keys", "list", "--json"))}
        if path.exists() and stamp.exists() and stamp.read_text() in known:
            return path
        made = json.loads(self.run("keys", "create", TENANT, "--json"))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(made["key"])
        stamp.write_text(made["id"])
        return path

    def start_traffic(self, rows: Path, key_file: Path, *, rate: float) -> subprocess.Popen[Any]:
        """The load generator, in its own process; it ends with this one at the latest."""
        told = ["--url", self.url, "--rows", str(rows), "--key-file", str(key_file), "--rate", str(rate)]
        return self.start_child("traffic", "examples.flights.traffic", *told, "--out", str(self.traffic_dir))

    def start_child(self, name: str, module: str, *arguments: str) -> subprocess.Popen[Any]:
        """A module of ours in its own process, logged under a name; it ends with this one at the latest."""
        log = self.log(name).open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "--with-parent"],
            cwd=_project_dir(),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        self._children.append(process)
        return process

    def run(self, *arguments: str, ok: Iterable[int] = (0,), timeout_s: float = 60) -> str:
        """One `interlock` command; returns what it printed. Raises `DemoFailed` with its words."""
        done = subprocess.run(
            _command(*arguments),
            cwd=_project_dir(),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )
        if done.returncode not in ok:
            said = (done.stderr or done.stdout).strip()
            raise DemoFailed(f"`interlock {' '.join(arguments)}` ended with status {done.returncode}: {said}")
        return done.stdout

    def tear_down(self) -> None:
        """Stop the traffic and the whole stack; returns when no process of it is left."""
        from serving.processes import stack_processes, stop_processes

        self.end_children()
        with contextlib.suppress(DemoFailed, subprocess.TimeoutExpired):
            self.run("down", timeout_s=_DOWN_WAIT_S)
        left = stack_processes(self.settings.run_dir)
        if left:
            stop_processes(left, wait_s=10)

    def log(self, program: str) -> Path:
        """The log of one program."""
        return self.settings.logs_dir / f"{program}.log"

    def _start(self, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        # A session of its own: Ctrl-C is for the demo, which then ends the stack in order.
        process = subprocess.Popen(
            _command(*arguments),
            cwd=_project_dir(),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )
        self._children.append(process)
        return process

    def write_shell_file(self) -> Path:
        """A file to source: with it, `interlock` and MLflow's and Prefect's clients mean this stack."""
        path = self.state / "env.sh"
        exported = self.settings.as_environment()
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in exported.items()]
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"\n')
        path.write_text("".join(lines))
        return path

    def end_children(self, wait_s: float = 20) -> None:
        """Stop the load generator (its last answers are waited for) and a stack that is still starting."""
        children, self._children = self._children, []
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            try:
                child.wait(wait_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _ports(self) -> dict[str, int]:
        """The usual ports where they are free; else free ones. A stack that runs keeps its own."""
        from serving.processes import stack_processes

        file = self.state / "ports.json"
        kept: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        usual = Settings(state_dir=self.state)
        if kept and stack_processes(usual.run_dir):
            return kept
        chosen: dict[str, int] = {}
        for name in PORTS:
            wanted = kept.get(name, getattr(usual, name))
            taken = wanted in chosen.values() or not _is_free(usual.host, wanted)
            chosen[name] = _any_free(usual.host, chosen.values()) if taken else wanted
        file.write_text(json.dumps(chosen))
        return chosen


def _project_dir() -> Path:
    return Path(__file__).resolve().parents[2]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _any_free(host: str, taken: Iterable[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
