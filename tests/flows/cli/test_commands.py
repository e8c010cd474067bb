"""The commands without a running stack: what they print, as text and JSON, and how they exit."""

from __future__ import annotations

import json
import shlex
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from configs.settings import Settings
from serving.errors import Fenced, LeaseExpired, PlatformUnavailable, Refused, ServingError
from serving.journal import Journal
from tasks.failures import MEANINGS, ExitStatus, explain
from tests.configs.policies import VALID
from tests.flows.cli.conftest import Interlock

COMMANDS = [
    "up", "down", "status", "doctor", "logs", "env", "release", "pause", "resume", "abort",
    "rollback", "history", "validate", "policy-keys", "keys",
]  # fmt: skip


def write_policy(settings: Settings, text: str = VALID, name: str = "flights.yaml") -> Path:
    path = settings.policy_dir / name
    path.write_text(text)
    return path


def test_help_names_every_command_and_every_exit_status(interlock: Interlock) -> None:
    result = interlock("--help")
    assert result.status == 0
    for command in COMMANDS:
        assert f"  {command} " in result.out
        assert interlock(command, "--help").status == 0
    words = " ".join(result.out.split())
    for status in ExitStatus:
        assert f"{int(status)} " in words.partition("Exit statuses:")[2]
    assert set(MEANINGS) == set(ExitStatus)


def test_without_a_command_help_is_shown(interlock: Interlock) -> None:
    result = interlock()
    assert result.status == 2
    assert "Commands:" in result.out + result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["release", "flights"],
        ["release", "flights", "zero"],
        ["release", "flights", "0"],
        ["release", "flights", "3", "--again"],
        ["rollback", "flights"],
        ["logs", "nonsense"],
        ["validate"],
    ],
)
def test_wrong_usage_is_2_and_changes_nothing(
    interlock: Interlock, cli_settings: Settings, arguments: list[str]
) -> None:
    result = interlock(*arguments)
    assert result.status == 2
    assert result.err != ""
    assert not cli_settings.state.exists()


def test_status_of_nothing_says_what_to_do(interlock: Interlock) -> None:
    result = interlock("status")
    assert result.status == 0
    assert "Next: interlock up" in result.out
    assert json.loads(interlock("status", "--json").out) == {"stack": [], "endpoints": []}


def test_status_of_an_endpoint_that_never_served(interlock: Interlock, cli_settings: Settings) -> None:
    write_policy(cli_settings)
    cli_settings.state.mkdir()
    found = json.loads(interlock("status", "flights", "--json").out)
    assert found["endpoint"] == "flights"
    assert found["champion"] == ""
    assert found["release"] is None
    assert "none yet" in interlock("status", "flights").out
    assert "flights" in interlock("status").out


def test_one_broken_policy_does_not_hide_the_others(interlock: Interlock, cli_settings: Settings) -> None:
    write_policy(cli_settings)
    write_policy(cli_settings, "endpoint: [", "broken.yaml")
    cli_settings.state.mkdir()
    endpoints = json.loads(interlock("status", "--json").out)["endpoints"]
    assert [row["endpoint"] for row in endpoints] == ["broken", "flights"]
    assert "not YAML" in endpoints[0]["error"]
    assert interlock("status").status == 0


def test_history_of_nothing(interlock: Interlock, cli_settings: Settings) -> None:
    write_policy(cli_settings)
    cli_settings.state.mkdir()
    assert json.loads(interlock("history", "flights", "--json").out) == []
    assert "nothing happened yet" in interlock("history", "flights").out
    assert json.loads(interlock("history", "flights", "--audit", "--json").out) == []


@pytest.mark.parametrize("options", [(), ("--json",), ("--audit",)])
def test_history_of_an_unknown_endpoint_is_refused_as_its_status_is(
    interlock: Interlock, cli_settings: Settings, options: tuple[str, ...]
) -> None:
    write_policy(cli_settings)
    cli_settings.state.mkdir()
    asked, status = interlock("history", "flihgts", *options), interlock("status", "flihgts")
    assert (asked.status, asked.out) == (status.status, "") == (1, "")
    assert asked.err == status.err
    assert "did you mean" in asked.err


def test_history_outlives_the_policy(interlock: Interlock, cli_settings: Settings) -> None:
    cli_settings.state.mkdir()
    with closing(Journal(cli_settings.journal)) as journal:
        journal.add_release("gone", "1", champion="", policy={}, now=1.0)
    assert "gone-v1-1" in interlock("history", "gone").out


def test_validate(interlock: Interlock, cli_settings: Settings) -> None:
    path = write_policy(cli_settings)
    assert "is valid: endpoint flights" in interlock("validate", str(path)).out
    assert json.loads(interlock("validate", str(path), "--json").out)["valid"] is True
    wrong = write_policy(cli_settings, VALID.replace("bake_s", "bake"))
    result = interlock("validate", str(wrong))
    assert result.status == 1
    assert result.out == ""
    assert "canary.bake is not a key; the nearest is 'canary.bake_s'" in result.err
    report = json.loads(interlock("validate", str(wrong), "--json").out)
    assert report["valid"] is False
    assert report["problems"][0]["key"] == "canary.bake"
    assert interlock("validate", str(wrong), "--json").status == 1


def test_policy_keys(interlock: Interlock) -> None:
    text = interlock("policy-keys").out
    keys = json.loads(interlock("policy-keys", "--json").out)
    for key in keys:
        assert f"{key['path']}  (" in text
        assert key["description"] in text


def test_env_can_be_evaluated_by_a_shell(interlock: Interlock, cli_settings: Settings) -> None:
    lines = interlock("env").out.splitlines()
    parsed = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert parsed == json.loads(interlock("env", "--json").out)
    assert parsed["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{cli_settings.mlflow_port}"
    assert parsed["PREFECT_API_URL"] == f"http://127.0.0.1:{cli_settings.prefect_port}/api"


def test_doctor_before_the_first_up_is_content(interlock: Interlock, cli_settings: Settings) -> None:
    result = interlock("doctor")
    assert result.status == 0, result.out
    assert not cli_settings.state.exists(), "the doctor changes nothing"
    checks = {row["check"]: row for row in json.loads(interlock("doctor", "--json").out)}
    assert checks["gateway"]["ok"] is False
    assert checks["gateway"]["required"] is False
    assert "interlock up" in result.out


def test_doctor_names_what_is_wrong_and_the_way_out(
    interlock: Interlock, cli_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_policy(cli_settings, "endpoint: [")
    monkeypatch.setenv("INTERLOCK_HAPROXY", "/nonexistent/haproxy")
    monkeypatch.setenv("INTERLOCK_GATEWAY_PROT", "1")
    with socket.create_server(("127.0.0.1", cli_settings.hook_port)):
        result = interlock("doctor")
    assert result.status == 1
    for words in (
        "interlock validate",
        "INTERLOCK_HAPROXY",
        "did you mean INTERLOCK_GATEWAY_PORT",
        f"port {cli_settings.hook_port} is taken",
    ):
        assert words in result.out


def test_up_names_a_taken_port_and_starts_nothing(interlock: Interlock, cli_settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", cli_settings.mlflow_port)):
        result = interlock("up")
    assert result.status == 1
    assert f"port {cli_settings.mlflow_port} (MLflow server)" in result.err
    assert "Next:" in result.err
    assert not (cli_settings.run_dir / "supervisord.pid").exists()


def test_down_of_nothing_is_fine(interlock: Interlock) -> None:
    result = interlock("down")
    assert (result.status, result.out) == (0, "The stack was not up; nothing is left running.\n")


def test_release_without_prefect_is_unavailable(interlock: Interlock, cli_settings: Settings) -> None:
    write_policy(cli_settings)
    cli_settings.state.mkdir()
    result = interlock("release", "flights", "3")
    assert result.status == int(ExitStatus.UNAVAILABLE)
    assert "Next: interlock doctor" in result.err


@pytest.mark.parametrize("command", ["pause", "resume", "abort"])
def test_nothing_to_steer_is_refused(interlock: Interlock, cli_settings: Settings, command: str) -> None:
    write_policy(cli_settings)
    cli_settings.state.mkdir()
    result = interlock(command, "flights")
    assert result.status == int(ExitStatus.REFUSED), result
    assert result.err.strip() != ""


def test_an_unknown_endpoint_is_a_failure_in_words(interlock: Interlock) -> None:
    result = interlock("status", "fligths")
    assert result.status == 1
    assert "fligths.yaml was refused" in result.err


def test_a_wrong_setting_is_a_failure_in_words(interlock: Interlock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_HOOK_PORT", "abc")
    result = interlock("status")
    assert result.status == 1
    assert "INTERLOCK_HOOK_PORT must be a whole number" in result.err


def test_logs_of_one_and_of_all(interlock: Interlock, cli_settings: Settings) -> None:
    cli_settings.logs_dir.mkdir(parents=True)
    (cli_settings.logs_dir / "hook.log").write_text("one\ntwo\nthree\n")
    (cli_settings.logs_dir / "worker.log").write_text("four\n")
    assert interlock("logs", "hook", "-n", "2").out == "two\nthree\n"
    assert interlock("logs").out == "hook: one\nhook: two\nhook: three\nworker: four\n"
    assert "there is: hook, worker" in interlock("logs", "mlflow").err.replace("\n", " ")


def test_keys_work_without_a_running_gateway(interlock: Interlock, cli_settings: Settings) -> None:
    cli_settings.gateway_dir.mkdir(parents=True)
    assert "No keys yet" in interlock("keys", "list").out
    made = json.loads(interlock("keys", "create", "acme", "--json").out)
    assert made["tenant"] == "acme"
    shown = interlock("keys", "create", "acme")
    assert len(shown.out.split()) == 1, "standard output is the key alone, so that a script can take it"
    listed = interlock("keys", "list")
    assert made["id"] in listed.out
    assert made["key"] not in listed.out
    assert interlock("keys", "revoke", "acme", made["id"]).status == 0
    assert interlock("keys", "revoke", "acme", made["id"]).status == int(ExitStatus.REFUSED)
    assert len(json.loads(interlock("keys", "list", "acme", "--json").out)) == 1


def test_a_fault_of_ours_is_not_hidden(interlock: Interlock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("tasks.stack.stack_programs", fail)
    with pytest.raises(ZeroDivisionError):
        interlock("status")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("x"), ExitStatus.REFUSED),
        (Fenced("x"), ExitStatus.REFUSED),
        (LeaseExpired("x"), ExitStatus.REFUSED),
        (PlatformUnavailable("x"), ExitStatus.UNAVAILABLE),
        (ServingError("x"), ExitStatus.FAILED),
    ],
)
def test_errors_have_their_status(error: Exception, status: ExitStatus) -> None:
    assert explain(error) == (status, "x")
    assert explain(ZeroDivisionError()) is None
