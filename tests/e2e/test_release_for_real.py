"""A whole release on real servers: from an alias in MLflow to promotion, rejection, death and resumption."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from serving.gateway.keys import Keys
from tests.e2e import clouds
from tests.e2e.stand import Stand, Traffic, kill, own_settings

pytestmark = [pytest.mark.timeout(1200), pytest.mark.xdist_group("real-stack")]


@pytest.fixture(scope="module")
def platforms() -> Generator[dict[str, clouds.Platform]]:
    """SageMaker's and Vertex AI's doubles: the stack's worker finds them in its environment."""
    with clouds.both() as both, pytest.MonkeyPatch.context() as patch:
        for name, value in both[clouds.AWS].double.environment.items():
            patch.setenv(name, value)
        patch.setenv("INTERLOCK_GOOGLE_API_URL", both[clouds.GOOGLE].double.url)
        yield both


@pytest.fixture(scope="module")
def stand(
    tmp_path_factory: pytest.TempPathFactory, platforms: dict[str, clouds.Platform]
) -> Generator[Stand]:
    made = Stand(own_settings(tmp_path_factory.mktemp("e2e")))
    for endpoint in platforms:
        (made.settings.policy_dir / f"{endpoint}.yaml").write_text(clouds.policy(endpoint))
    try:
        made.interlock("up")
        yield made
    finally:
        made.interlock("down", check=False)


@pytest.fixture(scope="module")
def told(stand: Stand, platforms: dict[str, clouds.Platform]) -> dict[str, dict[str, clouds.Told]]:
    """Both managed endpoints after a first champion, a good version, and one that fails on live requests."""
    clouds.register_all(stand.register)
    return clouds.release_all(stand, platforms)


@pytest.fixture(scope="module")
def traffic(stand: Stand) -> Generator[Traffic]:
    """Requests from the first champion on."""
    champion = stand.register()
    stand.alias(champion)
    stand.await_release(champion, lambda one: one["state"] == "PROMOTED", 240)
    assert stand.aliases() == {"champion": champion}
    key = Keys(stand.settings).create("e2e")
    with Traffic(f"{stand.settings.gateway_url}/sums/invocations", key) as running:
        yield running


@pytest.mark.slow
def test_an_alias_is_all_it_takes_to_promote_a_good_version(stand: Stand, traffic: Traffic) -> None:
    begun = time.time()
    version = stand.register(offset=0.001)
    stand.alias(version)
    ended = stand.await_release(version, lambda one: one["state"] != "RUNNING" and bool(one["ended_at"]), 300)
    assert ended["state"] == "PROMOTED", ended
    assert stand.aliases() == {"champion": version, "previous": ended["champion"]}
    answers = traffic.since(begun)
    assert {status for status, _ in answers} == {200}
    after = traffic.since(ended["decided_at"] + 0.5)
    assert {seen for _, seen in after} <= {version}
    told = json.loads(stand.interlock("replay-decisions", ended["release"], "--json"))
    assert told["same"], told
    assert {stage["stage"]: stage["looks"] > 0 for stage in told["stages"]}["canary"]


@pytest.mark.slow
def test_a_version_that_fails_on_live_inputs_never_answers_a_user(stand: Stand, traffic: Traffic) -> None:
    begun = time.time()
    version = stand.register(fails=True)
    stand.alias(version)
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 300)
    assert (ended["state"], ended["decided_stage"]) == ("REJECTED", "shadow"), ended
    answers = traffic.since(begun)
    assert version not in {seen for _, seen in answers}
    assert {status for status, _ in answers} == {200}
    assert "candidate" not in stand.aliases()


@pytest.mark.slow
def test_a_killed_canary_gives_its_traffic_back_and_resumes(stand: Stand, traffic: Traffic) -> None:
    # Nothing of Interlock may take part: the worker, which would report the crash, stands still as well.
    worker = stand.program("worker")["pid"]  # now: asking all platforms takes longer than this canary
    version = stand.register(offset=0.002)
    stand.alias(version)
    running = stand.await_release(
        version, lambda one: one["stage"] == "canary" and one["progress"].get("look", 0) >= 2, 300
    )
    flow_run_id = running["flow_run_url"].rsplit("/", 1)[1]
    os.kill(worker, signal.SIGSTOP)
    try:
        killed_at = time.time()
        kill(stand.flow_process(flow_run_id))
        time.sleep(10 + 3)
        answers = traffic.since(killed_at + 10 + 1.5)
        assert answers
        assert set(answers) == {(200, running["champion"])}
    finally:
        os.kill(worker, signal.SIGCONT)
    stand.await_release(version, lambda one: one["state"] == "INTERRUPTED", 180)
    assert stand.aliases().get("candidate") == version
    stand.interlock("resume", "sums")
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 300)
    assert (ended["state"], ended["release"]) == ("PROMOTED", running["release"])
    assert {status for status, _ in traffic.since(killed_at)} == {200}


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", [clouds.AWS, clouds.GOOGLE])
def test_the_command_line_promotes_and_rolls_back_on_a_managed_platform(
    stand: Stand,
    platforms: dict[str, clouds.Platform],
    told: dict[str, dict[str, clouds.Told]],
    endpoint: str,
) -> None:
    first, good, bad = (told[endpoint][version] for version in clouds.VERSIONS)
    assert (first.status, good.status, bad.status) == (0, 0, 3), f"{first}\n{good}\n{bad}"
    assert "version 2 is champion" in good.lines
    assert platforms[endpoint].shares() == {"2": 1.0}
    releases = {one["version"]: one for one in stand.history(endpoint)}
    assert [releases[version]["state"] for version in clouds.VERSIONS] == ["PROMOTED", "PROMOTED", "REJECTED"]
    assert (releases["2"]["decided_stage"], releases["3"]["decided_stage"]) == ("canary", "canary")
    assert stand.aliases(endpoint) == {"champion": "2", "previous": "1"}
    assert platforms[endpoint].held() == {"2"}, "nothing of the others is left"
    assert stand.schedule_is_on("guard"), "no lease exists there"
    assert (
        releases["3"]["cost"]["versions"]["2"]["requests"]
        > releases["3"]["cost"]["versions"]["3"]["requests"]
    )
    assert releases["3"]["cost"]["candidate_dollars"] > 0
    assert "the candidate's machines cost $" in stand.interlock("history", endpoint)
    assert set(stand.status(endpoint)["live"]["versions"].values()) == {"2", ""}


@pytest.mark.e2e
def test_a_version_is_evaluated_by_hand_and_nothing_else_happens(
    stand: Stand, traffic: Traffic, tmp_path: Path
) -> None:
    begun = time.time()
    before = stand.history(), stand.aliases(), stand.status()["generation"]
    good, bad = stand.register(offset=0.001), stand.register(offset=0.5)
    page = tmp_path / "evaluation.html"
    told = stand.interlock("evaluate", "sums", good, "--report", str(page))
    assert f"sums v{good} against v{stand.status()['champion']}: PASS" in told
    assert "<svg" in page.read_text()
    assert json.loads(stand.interlock("evaluate", "sums", good, "--json"))["verdict"]["outcome"] == "PASS"
    status, said = stand.refused("evaluate", "sums", bad)
    assert (status, said) == (3, "")
    run = next(
        run for run in stand.mlflow_runs("interlock/sums") if run["tags"].get("interlock.version") == bad
    )
    assert run["tags"]["interlock.outcome"] == "fail"
    rows = stand.settings.policy_dir / "held_out.csv"
    rows.rename(rows.with_suffix(".away"))
    try:
        status, said = stand.refused("evaluate", "sums", good)
    finally:
        rows.with_suffix(".away").rename(rows)
    assert status == 1
    assert "held_out.csv does not exist. Next: " in said
    assert (stand.history(), stand.aliases(), stand.status()["generation"]) == before
    assert {status for status, _ in traffic.since(begun)} == {200}


@pytest.mark.e2e
def test_a_stopped_flow_that_wakes_up_after_a_rollback_by_hand_changes_nothing(
    stand: Stand, traffic: Traffic
) -> None:
    version = stand.register(offset=0.003)
    stand.alias(version)
    running = stand.await_release(
        version, lambda one: one["stage"] == "canary" and one["progress"].get("look", 0) >= 2, 300
    )
    pid = stand.flow_process(running["flow_run_url"].rsplit("/", 1)[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        stand.interlock("rollback", "sums", "--reason", "looks wrong")
        rolled_back_at = time.time()
    finally:
        os.kill(pid, signal.SIGCONT)
    before = stand.status()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and stand.flow_state(running) == "Running":
        time.sleep(1)
    assert stand.flow_state(running) == "Interrupted"
    after = stand.status()
    assert (after["champion"], after["generation"]) == (before["champion"], before["generation"])
    answers = traffic.since(rolled_back_at + 0.2)
    assert {seen for _, seen in answers} == {running["champion"]}
    assert {status for status, _ in traffic.since(rolled_back_at - 5)} == {200}
    assert stand.history()[0]["state"] == "ROLLED_BACK"


def share_of(stand: Stand) -> float:
    return stand.status()["share_percent"]


def canary_at_its_first_share(stand: Stand, version: str) -> dict[str, Any]:
    stand.alias(version)
    return stand.await_release(
        version, lambda one: one["stage"] == "canary" and one["progress"].get("look", 0) >= 2, 300
    )


@pytest.mark.e2e
def test_a_paused_canary_keeps_its_share_and_a_resumed_one_goes_on(stand: Stand, traffic: Traffic) -> None:
    version = stand.register(offset=0.004)
    running = canary_at_its_first_share(stand, version)
    stand.interlock("pause", "sums")
    paused_at = time.time()
    deadline = time.monotonic() + 30  # the bake is 12 s, and the evidence has long been enough
    while time.monotonic() < deadline:
        assert share_of(stand) == 25
        time.sleep(2)
    seen = traffic.since(paused_at)
    assert set(seen) == {(200, version), (200, running["champion"])}
    assert 0.15 < seen[200, version] / seen.total() < 0.35
    looks = stand.history()[0]["progress"]["look"]
    assert looks > running["progress"]["look"] + 10, "a paused release is watched on"
    stand.interlock("resume", "sums")
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 300)
    assert (ended["state"], ended["release"]) == ("PROMOTED", running["release"])
    assert {status for status, _ in traffic.since(paused_at)} == {200}


@pytest.mark.e2e
def test_a_paused_canary_that_turns_bad_is_rolled_back(
    stand: Stand, traffic: Traffic, tmp_path: Path
) -> None:
    upstream = tmp_path / "broken"
    version = stand.register(offset=0.005, breaks_on=upstream)
    running = canary_at_its_first_share(stand, version)
    stand.interlock("pause", "sums")
    upstream.touch()
    ended = stand.await_release(version, lambda one: bool(one["ended_at"]), 120)
    assert (ended["state"], ended["decided_stage"]) == ("REJECTED", "canary"), ended
    assert ended["reason"].startswith("errors: candidate ")
    time.sleep(1)
    assert set(traffic.since(ended["decided_at"] + 0.5)) == {(200, running["champion"])}
