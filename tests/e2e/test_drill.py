"""The scheduled drill on a real stack: a fault that is stopped, and one that a blind policy does not stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.stand import Stand, eventually, own_settings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.xdist_group("real-stack")]

EXAMPLE = Path(__file__).parents[2] / "examples" / "drill"


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stand]:
    made = Stand(own_settings(tmp_path_factory.mktemp("drill")))
    (made.settings.policy_dir / "sums.yaml").unlink()
    for name in ("drill.yaml", "held_out.csv"):
        shutil.copy(EXAMPLE / name, made.settings.policy_dir / name)
    try:
        made.interlock("up")
        yield made
    finally:
        made.interlock("down", check=False)


def drill(stand: Stand, fault: str) -> dict[str, Any]:
    """Run the deployment `drill` as the schedule does; the flow run once it has ended."""
    api = stand.settings.prefect_url
    found = httpx.get(f"{api}/deployments/name/drill/drill", timeout=30).json()
    body = {"parameters": {"endpoint": "drill", "fault": fault}}
    made = httpx.post(f"{api}/deployments/{found['id']}/create_flow_run", json=body, timeout=30).json()
    run: dict[str, Any] = {}

    def over() -> bool:
        run.update(httpx.get(f"{api}/flow_runs/{made['id']}", timeout=30).json())
        return run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

    eventually(over, 500, 2)
    print(run["state"]["name"], run["state"]["message"])
    return run


def trail(stand: Stand, what: str) -> list[dict[str, Any]]:
    lines = json.loads(stand.interlock("history", "drill", "--audit", "--json"))
    return [line for line in lines if line["what"] == what]


def is_as_before(stand: Stand, champion: str) -> bool:
    status = json.loads(stand.interlock("status", "drill", "--json"))
    keys = stand.interlock("keys", "list", "--json")
    return (
        status["champion"] == champion
        and status["live"]["route"]["share_bp"] == 0
        and "interlock-drill" not in keys
    )


def test_the_nightly_drill_stops_the_fault_and_leaves_everything_as_it_was(stand: Stand) -> None:
    run = drill(stand, "errors")
    assert (run["state_type"], run["state_name"]) == ("COMPLETED", "Completed"), run["state"]
    (kept,) = trail(stand, "drill")
    assert (kept["details"]["passed"], kept["details"]["state"]) == (True, "REJECTED")
    assert kept["details"]["stage"] == "canary"
    assert is_as_before(stand, kept["details"]["champion"])
    assert not [line for line in trail(stand, "alert") if "the drill failed" in line["details"]["message"]]
    url = f"{stand.settings.prefect_url}/artifacts/filter"
    body = {"artifacts": {"key": {"any_": ["drill-drills"]}}}
    (shown,) = httpx.post(url, json=body, timeout=30).json()
    assert json.loads(shown["data"])[0]["fault"] == "errors"


def test_a_fault_that_nothing_stops_is_ended_and_is_a_critical_alert(stand: Stand) -> None:
    policy = stand.settings.policy_dir / "drill.yaml"
    text = policy.read_text()
    blind = text.replace(
        "errors: { tolerance: 0.02, margin: 0.1 }", "errors: { tolerance: 0.9, margin: 0.9 }"
    )
    blind = blind.replace("rate_per_s: 60", "rate_per_s: 60\n  stopped_within_s: 10", 1)
    assert blind.count("0.9") == 2
    policy.write_text(blind)
    champion = json.loads(stand.interlock("status", "drill", "--json"))["champion"]
    try:
        run = drill(stand, "errors")
    finally:
        policy.write_text(text)
    assert (run["state_type"], run["state_name"]) == ("FAILED", "DrillFailed"), run["state"]
    newest = trail(stand, "drill")[0]["details"]
    assert newest["passed"] is False
    assert any("not stopped within" in problem for problem in newest["problems"])
    (told,) = [line for line in trail(stand, "alert") if "the drill failed" in line["details"]["message"]]
    assert told["details"]["severity"] == "critical"
    assert is_as_before(stand, champion)
