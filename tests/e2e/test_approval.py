"""People in command, on real servers: what they are shown, what they may say, and what follows from it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from typing import Any

import httpx
import pytest

from serving.gateway.keys import Keys
from tests.e2e.stand import POLICY, Stand, Traffic, eventually, kill, own_settings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.xdist_group("real-stack")]

SHORT = POLICY.replace("bake_s: 12", "bake_s: 3") + "watch: {enabled: false}\n"


def asking(**wanted: Any) -> str:
    """The policy with an approval gate."""
    section = {"required": True, "before": "shadow", "timeout_s": 600, **wanted}
    lines = ", ".join(f"{key}: {str(value).lower()}" for key, value in section.items())
    return f"{SHORT}approval: {{{lines}}}\n"


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stand]:
    made = Stand(own_settings(tmp_path_factory.mktemp("approval")), asking())
    try:
        made.interlock("up")
        yield made
    finally:
        made.interlock("down", check=False)


@pytest.fixture(scope="module")
def steady(stand: Stand) -> Generator[Traffic]:
    """Requests from the first champion on, which a person has approved in Prefect's form."""
    version = stand.register(user="ann")
    stand.alias(version)
    waits = await_question(stand, version)
    assert resume(stand, waits, {})["status"] == "REJECT", "an empty answer is no answer"
    assert resume(stand, waits, {"decision": "approve", "name": "bob"})["status"] == "REJECT"
    said = {"decision": "approve", "name": "bob", "reason": "it is the first one"}
    assert resume(stand, waits, said)["status"] == "ACCEPT"
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 120)
    assert ended["state"] == "PROMOTED", ended
    eventually(lambda: stand.flow_state(ended) == "Promoted", 60)
    key = Keys(stand.settings).create("e2e")
    with Traffic(f"{stand.settings.gateway_url}/sums/invocations", key) as running:
        yield running


def want(stand: Stand, **wanted: Any) -> None:
    """Change the gate of the releases that begin from now on."""
    (stand.settings.policy_dir / "sums.yaml").write_text(asking(**wanted))


def await_question(stand: Stand, version: str) -> dict[str, Any]:
    """The release of a version once its flow run is suspended in Prefect, and no process waits with it."""
    waits = stand.await_release(version, lambda one: one["state"] == "WAITING", 240)
    eventually(lambda: stand.flow_state(waits) == "Suspended", 30)
    return waits


def resume(stand: Stand, release: dict[str, Any], run_input: dict[str, Any]) -> dict[str, Any]:
    """Answer as Prefect's page does."""
    url = f"{stand.settings.prefect_url}/flow_runs/{run_id(release)}/resume"
    return httpx.post(url, json={"run_input": run_input}, timeout=30).json()


def has_process(stand: Stand, release: dict[str, Any]) -> bool:
    """Whether a process runs the release's flow run."""
    try:
        return stand.flow_process(run_id(release)) > 0
    except AssertionError:
        return False


def run_id(release: dict[str, Any]) -> str:
    return release["flow_run_url"].rsplit("/", 1)[1]


def form(stand: Stand, release: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The form that Prefect's page shows: its text and its schema."""
    url = f"{stand.settings.prefect_url}/flow_runs/{run_id(release)}"
    keys = httpx.get(url, timeout=30).json()["state"]["state_details"]["run_input_keyset"]
    text, schema = (
        httpx.get(f"{url}/input/{keys[key]}", timeout=30).json() for key in ("description", "schema")
    )
    return text, schema


def test_a_yes_lets_it_go_on_and_who_registered_it_cannot_say_it_alone(stand: Stand, steady: Traffic) -> None:
    want(stand, before="canary")
    champion = stand.status()["champion"]
    version = stand.register(offset=0.001, user="ann")
    began = time.time()
    stand.alias(version)
    waits = await_question(stand, version)
    assert 'interlock approve sums --reason "..."' in waits["reason"]
    eventually(lambda: not has_process(stand, waits), 60)
    assert {seen for _, seen in steady.since(began)} == {champion}

    text, schema = form(stand, waits)
    assert f"Version {version} of sums onto sums?" in text
    assert "### evaluate: PASS" in text
    assert "### shadow: PASS" in text
    assert sorted(schema["required"]) == ["decision", "name", "reason"]
    assert schema["properties"]["decision"]["enum"] == ["approve", "reject"]
    assert "default" not in schema["properties"]["decision"]

    code, said = stand.refused("approve", "sums", "--reason", "trust me", user="ann")
    assert "ann registered version" in said or "registered version" in said, said
    assert code not in (0, 1, 2), "a refusal is no crash"
    assert stand.history()[0]["state"] == "WAITING"

    assert "goes on within seconds" in stand.interlock("approve", "sums", "--reason", "read it", user="bob")
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 240)
    assert (ended["state"], ended["release"]) == ("PROMOTED", waits["release"])
    (yes, *_) = stand.audit("approval: approve")
    assert yes["who"].startswith("bob@")
    assert yes["details"]["reason"] == "read it"
    assert {status for status, _ in steady.since(began)} == {200}


def test_two_people_are_two_and_a_dead_worker_in_between_costs_nothing(stand: Stand, steady: Traffic) -> None:
    want(stand, approvers_min=2)
    version = stand.register(offset=0.002, user="ann")
    began = time.time()
    stand.alias(version)
    waits = await_question(stand, version)
    said = stand.interlock("approve", "sums", "--reason", "mine, it is good", user="ann")
    assert "waits for the approval of 1 more person beside ann" in said
    eventually(lambda: "1 more person" in stand.history()[0]["reason"], 60)
    kill(int(stand.program("worker")["pid"]))
    await_question(stand, version)
    _, again = stand.refused("approve", "sums", "--reason", "still good", user="ann")
    assert "said yes already" in again
    text, _ = form(stand, waits)
    assert "mine, it is good" in text, "the second person reads what the first one said"
    stand.interlock("approve", "sums", "--reason", "looked at it", user="bob")
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 240)
    assert (ended["state"], ended["release"]) == ("PROMOTED", waits["release"])
    assert [line["who"].split("@")[0] for line in stand.audit("approval: approve")[:2]] == ["bob", "ann"]
    assert {status for status, _ in steady.since(began)} == {200}


def test_a_no_rejects_and_only_a_reason_brings_it_back(stand: Stand, steady: Traffic) -> None:
    want(stand)
    champion = stand.status()["champion"]
    version = stand.register(offset=0.003)
    began = time.time()
    stand.alias(version)
    waits = await_question(stand, version)
    stand.interlock("reject", "sums", "--reason", "the fare column moves next week", user="bob")
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 120)
    assert ended["state"] == "REJECTED"
    assert "the fare column moves next week" in ended["reason"]
    eventually(lambda: stand.flow_state(waits) == "Rejected", 30)
    assert "candidate" not in stand.aliases()
    assert set(steady.since(began)) == {(200, champion)}
    stand.refused("release", "sums", version, "--wait")
    assert len([one for one in stand.history() if one["version"] == version]) == 1


def test_a_yes_in_time_counts_however_late_the_worker_comes_for_it(stand: Stand, steady: Traffic) -> None:
    want(stand, timeout_s=60)
    version = stand.register(offset=0.0045)
    stand.alias(version)
    waits = await_question(stand, version)
    worker = int(stand.program("worker")["pid"])
    os.kill(worker, signal.SIGSTOP)
    try:
        stand.interlock("approve", "sums", "--reason", "just in time", user="bob")
        time.sleep(max(0.0, waits["progress"]["until"] + 5 - time.time()))
    finally:
        os.kill(worker, signal.SIGCONT)
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 240)
    assert ended["state"] == "PROMOTED", ended
    assert steady.answers


def test_nobody_answers_in_time_is_a_no(stand: Stand, steady: Traffic) -> None:
    want(stand, timeout_s=15)
    champion = stand.status()["champion"]
    version = stand.register(offset=0.004)
    began = time.time()
    stand.alias(version)
    waits = await_question(stand, version)
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 180)
    assert ended["state"] == "REJECTED"
    assert "nobody approved it within 15 s" in ended["reason"]
    eventually(lambda: stand.flow_state(waits) not in ("Suspended", "Paused"), 60)
    print(f"rejected {ended['ended_at'] - waits['progress']['since']:.0f} s after the question")
    assert set(steady.since(began)) == {(200, champion)}


def test_an_abort_while_it_waits_ends_the_run_and_frees_the_endpoint(stand: Stand, steady: Traffic) -> None:
    want(stand)
    version = stand.register(offset=0.005)
    stand.alias(version)
    waits = await_question(stand, version)
    _, said = stand.refused("release", "sums", version, "--wait")
    assert "waits for the approval" in said, "one release at a time"
    stand.interlock("abort", "sums")
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 60)
    assert ended["state"] == "ABORTED"
    eventually(lambda: stand.flow_state(waits) == "Aborted", 30)
    stand.refused("approve", "sums", "--reason", "too late", user="bob")
    assert {status for status, _ in steady.since(0)} == {200}

    stand.interlock("release", "sums", version)
    assert await_question(stand, version)["release"] != waits["release"]
    stand.interlock("abort", "sums")
