"""Servers that go away, drift, late labels, broken schemas, deaths: one real stack under traffic."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from serving.gateway.keys import Keys
from serving.journal import Journal
from serving.records import ReleaseRow
from serving.secret_files import Secret, read_or_create
from serving.supervision import Supervisor
from tests.e2e.stand import INTERLOCK, POLICY, Stand, Traffic, eventually, kill, own_settings, promote
from tests.serving.hook import deliveries

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.xdist_group("real-stack")]

SCENARIOS = (
    POLICY.replace("bake_s: 12", "bake_s: 3")
    + """
# longer than a minute without a look: harm that lasts must still be known when a window is judged
watch: {look_every_s: 2, run_s: 40, quality: 0.8, clear_s: 180, control: {every_s: 60}}
labels: {metric: absolute, scale: 0.1}
drift:
  window_s: 60
  k: 1
  m: 1
  reference: {kind: file, path: reference.parquet}
"""
)
PER_S = 60


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stand]:
    """A stack whose endpoint is watched, labelled and looked at for drift."""
    made = Stand(own_settings(tmp_path_factory.mktemp("scenarios")), SCENARIOS)
    rng = np.random.default_rng(0)
    # smaller numbers than clients send: inputs and answers drift from the first request on
    frame = pd.DataFrame({"a": rng.uniform(0, 0.5, 5000), "b": rng.uniform(0, 1, 5000)})
    frame.assign(prediction=frame["a"] + frame["b"]).to_parquet(
        made.settings.policy_dir / "reference.parquet"
    )
    try:
        made.interlock("up")
        yield made
    finally:
        made.interlock("down", check=False)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As soon as it exists, what versions registered with it depend on is broken."""
    return tmp_path_factory.mktemp("faults") / "upstream"


@pytest.fixture(scope="module")
def url(stand: Stand) -> str:
    return f"{stand.settings.gateway_url}/sums/invocations"


@pytest.fixture(scope="module")
def steady(stand: Stand, upstream: Path, url: str) -> Generator[Traffic]:
    """Requests from the first champion on."""
    promote(stand, stand.register(breaks_on=upstream))
    with Traffic(url, Keys(stand.settings).create("e2e"), per_s=PER_S) as running:
        yield running


@contextmanager
def stopped(stand: Stand, program: str) -> Generator[None]:
    """A server of the stack that answers nothing, as if its machine hung."""
    pid = int(stand.program(program)["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def in_canary(release: dict[str, Any]) -> bool:
    return release["stage"] == "canary" and release["progress"].get("look", 0) >= 2


def ended(release: dict[str, Any]) -> bool:
    return bool(release["ended_at"])


def release_runs(stand: Stand, version: str) -> list[dict[str, Any]]:
    """Flow runs of the release deployment that were asked for a version."""
    body = {"flows": {"name": {"any_": ["release"]}}, "limit": 200}
    runs = httpx.post(f"{stand.settings.prefect_url}/flow_runs/filter", json=body, timeout=30).json()
    return [run for run in runs if str(run["parameters"].get("version")) == version]


def deliver(stand: Stand, version: str, *, at: float, delivery_id: str = "", secret: bytes = b"") -> int:
    """One webhook as MLflow sends it; the receiver's answer. Without a secret, with the right one."""
    body = deliveries.alias_event("sums", "candidate", version)
    secret = secret or read_or_create(stand.settings, Secret.WEBHOOK).encode()
    headers = deliveries.headers(body, delivery_id=delivery_id or str(uuid.uuid4()), at=at, secret=secret)
    return httpx.post(stand.settings.hook_url, content=body, headers=headers, timeout=30).status_code


def test_webhooks_doubled_reordered_or_forged_start_nothing_twice(stand: Stand, steady: Traffic) -> None:
    older, version = stand.register(offset=0.0005), stand.register(offset=0.001, fails=True)
    began = time.time()
    assert deliver(stand, version, at=began, secret=b"somebody else's") == 401
    assert deliver(stand, version, at=began - 3600) in (400, 401), "an old one, sent again by whoever saw it"
    delivery = str(uuid.uuid4())
    assert [deliver(stand, version, at=began, delivery_id=delivery) for _ in range(3)] == [200] * 3
    stand.await_release(version, stage("evaluate"), 120)
    assert deliver(stand, older, at=began - 30) == 200, "the candidate before it, told late"
    ended_as = stand.await_release(version, ended, 300)
    assert (ended_as["state"], ended_as["decided_stage"]) == ("REJECTED", "shadow")
    assert len(release_runs(stand, version)) == 1, "one delivery, however often it comes"
    (refused,) = release_runs(stand, older)
    assert refused["state_name"] == "Refused", refused["state"]
    assert older not in {one["version"] for one in stand.history()}
    assert {status for status, _ in steady.since(began)} == {200}


def test_a_lost_webhook_is_caught_up_by_the_sweep(stand: Stand, steady: Traffic) -> None:
    version, began = stand.register(offset=0.002, fails=True), time.time()
    Supervisor(stand.settings).remove("hook")
    stand.alias(version)
    time.sleep(20)  # MLflow tries for some ten seconds, and then forgets
    assert release_runs(stand, version) == []
    stand.interlock("up")
    time.sleep(5)
    assert release_runs(stand, version) == []
    for _ in range(2):  # the first sweep may be faster than the event: it only notes that it saw it
        sweep(stand)
    eventually(lambda: release_runs(stand, version), 60, 1)
    assert stand.await_release(version, ended, 300)["state"] == "REJECTED"
    assert len(release_runs(stand, version)) == 1
    assert {status for status, _ in steady.since(began)} == {200}


def sweep(stand: Stand) -> None:
    """Have the scheduled `reconcile` run now, and wait for it."""
    api = stand.settings.prefect_url
    found = httpx.get(f"{api}/deployments/name/reconcile/reconcile", timeout=30).json()

    def swept() -> bool:
        url = f"{api}/deployments/{found['id']}/create_flow_run"
        run = httpx.post(url, json={}, timeout=30).json()["id"]
        state: dict[str, Any] = {}

        def over() -> bool:
            state.update(httpx.get(f"{api}/flow_runs/{run}", timeout=30).json()["state"])
            return state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        eventually(over, 120, 1)
        return state["type"] == "COMPLETED"  # cancelled: the scheduled one was running

    eventually(swept, 240, 2)


def test_of_two_releases_started_at_once_one_runs(stand: Stand, steady: Traffic) -> None:
    champion = stand.status()["champion"]
    versions = [stand.register(offset=0.001 * one) for one in (2, 3)]
    began = time.time()
    started = [
        subprocess.Popen(
            [*INTERLOCK, "release", "sums", version],
            env=stand.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for version in versions
    ]
    for process in started:
        process.communicate(timeout=120)

    def open_now() -> list[str]:
        return [one["version"] for one in stand.history() if one["version"] in versions and not ended(one)]

    eventually(open_now, 120, 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert len(open_now()) <= 1
        time.sleep(2)
    stand.interlock("abort", "sums", check=False)
    eventually(lambda: not open_now(), 120, 2)
    eventually(lambda: stand.status()["live"]["route"]["share_bp"] == 0, 30)
    assert champion in {seen for _, seen in steady.since(began)}
    assert {status for status, _ in steady.since(began)} == {200}


def test_prefect_away_for_a_minute_mid_canary_harms_nobody(stand: Stand, steady: Traffic) -> None:
    version = stand.register(offset=0.004)
    stand.alias(version)
    running = stand.await_release(version, in_canary, 300)
    began = time.time()
    with stopped(stand, "prefect"):
        time.sleep(60)
    done = stand.await_release(version, lambda one: ended(one) or one["state"] == "INTERRUPTED", 240)
    if not ended(done):
        stand.interlock("resume", "sums")
        done = stand.await_release(version, ended, 300)
    assert (done["state"], done["release"]) == ("PROMOTED", running["release"])
    assert {status for status, _ in steady.since(began)} == {200}


def test_mlflow_away_at_the_promotion_holds_up_the_aliases_only(stand: Stand, steady: Traffic) -> None:
    before = stand.status()["champion"]
    version = stand.register(offset=0.005)
    stand.alias(version)
    stand.await_release(version, in_canary, 300)
    began = time.time()
    with stopped(stand, "mlflow"):
        eventually(lambda: stand.status()["champion"] == version, 240, 1)
        eventually(lambda: {seen for _, seen in steady.since(time.time() - 1)} == {version}, 30)
    eventually(lambda: stand.aliases() == {"champion": version, "previous": before}, 300, 2)
    done = stand.await_release(version, ended, 240)
    assert done["state"] == "PROMOTED", done
    assert {status for status, _ in steady.since(began)} == {200}


def stage(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda one: one["state"] == "RUNNING" and one["stage"] == name


def kill_in(stand: Stand, version: str, where: str) -> ReleaseRow:
    """Kill a release's flow run as soon as it is in a stage. The release as it was then."""
    with closing(Journal(stand.settings.journal)) as journal:

        def newest() -> ReleaseRow:
            return journal.releases("sums", version=version)[0]

        eventually(lambda: journal.releases("sums", version=version) and newest().flow_run_id, 120, 0.05)
        process = stand.flow_process(newest().flow_run_id)  # looked up before: some stages are short
        eventually(lambda: newest().mlflow_run_id and newest().stage.value == where, 300, 0.05)
        kill(process)
        return newest()


@pytest.mark.parametrize("where", ["evaluate", "stage", "shadow"])
def test_a_flow_killed_in_a_stage_is_safe_and_completes_when_run_again(
    stand: Stand, steady: Traffic, where: str
) -> None:
    """Without staging, the stage called `stage` is the candidate's placing."""
    champion = stand.status()["champion"]
    version = stand.register(offset=0.006 + len(where) / 1000)
    began = time.time()
    stand.alias(version)
    running = kill_in(stand, version, where)
    safe = stand.await_release(version, lambda one: one["state"] == "INTERRUPTED", 240)
    assert (safe["release"], safe["stage"]) == (running.id, where)
    placed = [line for line in stand.audit("placed") if line["release_id"] == running.id]
    assert bool(placed) == (where == "shadow"), "killed while it was placed, not after it"
    eventually(lambda: stand.status()["live"]["route"]["share_bp"] == 0, 30)
    assert stand.status()["champion"] == champion
    assert stand.aliases()["candidate"] == version
    assert {seen for _, seen in steady.since(began)} == {champion}
    stand.interlock("resume", "sums")
    done = stand.await_release(version, ended, 300)
    assert (done["state"], done["release"]) == ("PROMOTED", running.id)
    assert {status for status, _ in steady.since(began)} == {200}


def test_a_flow_killed_in_its_promotion_leaves_it_decided_and_the_sweep_finishes_it(
    stand: Stand, steady: Traffic
) -> None:
    """MLflow hangs meanwhile, so that the promotion is between its decision and the aliases for sure."""
    before = stand.status()["champion"]
    version = stand.register(offset=0.007)
    stand.alias(version)
    running = stand.await_release(version, in_canary, 300)
    process = stand.flow_process(running["flow_run_url"].rsplit("/", 1)[1])
    began = time.time()
    with stopped(stand, "mlflow"), closing(Journal(stand.settings.journal)) as journal:
        # not by the command line: it waits for MLflow, and the flow may give up meanwhile
        eventually(lambda: getattr(journal.endpoint("sums"), "champion", "") == version, 240, 0.05)
        kill(process)
        eventually(lambda: stand.flow_state(running) == "Crashed", 120, 1)
        decided = stand.status()["intent"]
        assert (decided["kind"], decided["release_id"]) == ("promote", running["release"]), (
            "MLflow knows nothing"
        )
        eventually(lambda: {seen for _, seen in steady.since(time.time() - 1)} == {version}, 30)
    sweep(stand)
    assert stand.status()["intent"] is None
    assert stand.aliases() == {"champion": version, "previous": before}
    done = stand.await_release(version, ended, 60)
    assert (done["state"], done["release"]) == ("PROMOTED", running["release"])
    assert {status for status, _ in steady.since(began)} == {200}
    again = stand.interlock("release", "sums", version, "--wait", check=False)
    assert f"version {version} is the champion already" in again


def drift_of(stand: Stand) -> dict[str, Any]:
    """The first whole minute from now on that holds enough of the champion's requests to be judged."""
    deadline = time.monotonic() + 240
    while True:
        judged = json.loads(stand.interlock("drift", "sums", "--again", "--json"))
        if judged["row"] != "not judged" or time.monotonic() > deadline:
            return judged
        time.sleep(65 - time.time() % 60)


def labelled(stand: Stand, steady: Traffic, tmp_path: Path, count: int) -> dict[str, Any]:
    """Take the truth about the newest requests."""
    path = tmp_path / f"labels-{time.monotonic_ns()}.csv"
    ids, labels = zip(*steady.asked[-count:], strict=True)
    pd.DataFrame({"request_id": ids, "label": labels}).to_csv(path, index=False)
    return json.loads(stand.interlock("labels", "sums", str(path), "--json"))["report"]


def test_drift_without_harm_is_logged_and_moves_nothing(
    stand: Stand, steady: Traffic, tmp_path: Path
) -> None:
    champion = stand.status()["champion"]
    eventually(lambda: len(steady.asked) > 130 * PER_S, 200, 1)
    time.sleep(2)
    report = labelled(stand, steady, tmp_path, 120 * PER_S)
    assert report["stored"] > 60 * PER_S, report
    judged = drift_of(stand)
    assert judged["alarms"], judged["reason"]
    assert (judged["row"], set(judged["actions"]) - {"ask for retraining"}) == (
        "input drift, no harm",
        {"log"},
    )
    assert stand.status()["champion"] == champion


def test_drift_that_hurts_both_versions_alerts_and_rolls_nothing_back(
    stand: Stand, steady: Traffic, upstream: Path
) -> None:
    before, version = (stand.register(offset=offset, breaks_on=upstream) for offset in (0.009, 0.008))
    for one in (before, version):
        promote(stand, one)
    assert stand.status()["other_version"] == before, "the previous version is at hand"
    began = time.time()
    upstream.touch()
    try:
        eventually(lambda: told(stand, "both versions suffer", began), 200, 2)
        time.sleep(65 - time.time() % 60)  # the next whole minute has it
        judged = drift_of(stand)
    finally:
        upstream.unlink()
    print(judged["row"], judged["actions"], judged["done"])
    assert judged["row"] == "harm, both versions"
    assert "roll back" not in judged["actions"]
    assert "alert" in judged["actions"]
    assert stand.status()["champion"] == version
    assert {seen for _, seen in steady.since(began)} == {version}
    # while the champion is taken for broken, no ramp goes on
    eventually(
        lambda: "no evidence of harm" in stand.interlock("watch", "sums", "--once", check=False), 300, 5
    )


def test_labels_that_come_late_take_a_wrong_version_back(
    stand: Stand, steady: Traffic, tmp_path: Path
) -> None:
    """Its answers are off by 0.045: fine for evaluation and shadow, a score of 0.55 by the labels."""
    before = stand.status()["champion"]
    version = stand.register(offset=0.045)
    promote(stand, version)
    time.sleep(15)
    assert stand.status()["champion"] == version, "nobody knows yet"
    labelled(stand, steady, tmp_path, 10 * PER_S)
    eventually(lambda: stand.status()["champion"] == before, 200, 1)
    (release,) = [one for one in stand.history() if one["version"] == version]
    assert release["state"] == "ROLLED_BACK"
    assert "quality: mean score 0.5" in release["reason"]


def test_a_broken_upstream_schema_alerts_and_rolls_nothing_back(
    stand: Stand, steady: Traffic, url: str
) -> None:
    champion = stand.status()["champion"]
    began = time.time()
    with Traffic(url, Keys(stand.settings).create("broken"), per_s=PER_S, columns=("a",)) as broken:
        eventually(lambda: told(stand, f"traffic stays on version {champion}", began), 200, 2)
    assert {status for status, _ in broken.since(0)} == {400}
    assert stand.status()["champion"] == champion
    assert {status for status, _ in steady.since(began)} == {200}


def told(stand: Stand, words: str, since: float) -> list[str]:
    """Critical alerts since a moment that say this."""
    lines = [line for line in stand.audit("alert") if line["details"]["severity"] == "critical"]
    said = [line["details"]["message"] for line in lines if line["time"] > since]
    return [message for message in said if words in message]
