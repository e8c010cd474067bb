"""The demo's stack: its ports, its policy, its environment, and no process left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.policy import Policy
from examples.flights.demo import main
from examples.flights.stand import POLICY, PORTS, DemoFailed, Stand


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Stand clears variables of other stacks; this puts them back after the test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere.example:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere.example:4200/api")
    monkeypatch.setenv("INTERLOCK_GATEWAY_PORT", "1")
    monkeypatch.setenv("INTERLOCK_HAPROXY", "/opt/haproxy")


def free_ports(state: Path) -> None:
    """Make a stand choose from ports that nobody uses by default."""
    state.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = probe.getsockname()[1]
    (state / "ports.json").write_text(json.dumps({name: first + place for place, name in enumerate(PORTS)}))


def test_a_taken_port_is_given_up_and_the_choice_is_kept(tmp_path: Path) -> None:
    free_ports(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = json.loads((tmp_path / "ports.json").read_text()) | {"mlflow_port": taken.getsockname()[1]}
        (tmp_path / "ports.json").write_text(json.dumps(ports))
        stand = Stand(tmp_path)
        assert stand.settings.mlflow_port != taken.getsockname()[1]
    assert len({getattr(stand.settings, name) for name in PORTS}) == len(PORTS)
    assert Stand(tmp_path).settings.mlflow_port == stand.settings.mlflow_port


def test_servers_of_other_stacks_are_never_used(tmp_path: Path) -> None:
    free_ports(tmp_path)
    stand = Stand(tmp_path)
    assert stand.settings.starts_mlflow
    assert stand.settings.starts_prefect
    assert "elsewhere" not in json.dumps(stand.environment)
    assert stand.settings.gateway_port != 1
    assert stand.environment["INTERLOCK_HAPROXY"] == "/opt/haproxy"
    assert stand.environment["INTERLOCK_STATE_DIR"] == str(tmp_path)


def test_the_policy_is_the_committed_one_with_this_stacks_data(tmp_path: Path) -> None:
    free_ports(tmp_path)
    written = Stand(tmp_path).write_policy(tmp_path / "data" / "held_out.parquet")
    assert written == tmp_path / "policies" / "flights.yaml"
    mine, committed = (Policy(**yaml.safe_load(path.read_text())) for path in (written, POLICY))
    assert mine.evaluation.data == str(tmp_path / "data" / "held_out.parquet")
    assert mine.model_copy(update={"evaluation": committed.evaluation}) == committed


def test_the_policy_is_as_the_story_tells_it() -> None:
    policy = Policy(**yaml.safe_load(POLICY.read_text()))
    assert policy.assign_by == "user"
    assert not policy.access.public
    assert policy.canary.steps == (5, 25, 50, 95)
    assert set(policy.canary.latency.quantiles) == {"p50", "p90"}
    assert policy.shadow.min_pairs >= 400
    assert policy.shadow.concurrency == 1


def test_children_end_with_the_demo(tmp_path: Path) -> None:
    free_ports(tmp_path)
    stand = Stand(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    stand._children.append(child)
    stand.end_children(wait_s=5)
    assert child.returncode is not None
    stand.end_children()  # nothing left to end


def test_a_command_that_fails_says_its_own_words(tmp_path: Path) -> None:
    free_ports(tmp_path)
    with pytest.raises(DemoFailed, match=r"`interlock nonsense` ended with status 2"):
        Stand(tmp_path).run("nonsense")


def test_the_shell_file_points_at_this_stack(tmp_path: Path) -> None:
    free_ports(tmp_path)
    stand = Stand(tmp_path)
    shell = stand.write_shell_file()
    done = subprocess.run(
        ["sh", "-c", f'. "{shell}" && echo "$INTERLOCK_STATE_DIR $MLFLOW_TRACKING_URI"'],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path), stand.settings.mlflow_url]


def test_help_is_cheap(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--keep" in capsys.readouterr().out
