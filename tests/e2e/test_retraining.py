"""The loop closed on real flights: drift, an event, a training deployment, a candidate, a better champion."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from examples.flights import retrain
from examples.flights.data import FEATURES, LABEL
from serving.gateway.keys import Keys
from tests.e2e.stand import Stand, eventually, own_settings

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200), pytest.mark.xdist_group("real-stack")]

PROJECT = Path(__file__).parents[2]
DEPLOYMENTS = "examples/flights/prefect.yaml"
PER_S = 50


def flights_policy() -> dict[str, Any]:
    """The demo's policy, judged on the end of July and watched for drift every minute."""
    policy = yaml.safe_load((PROJECT / "examples/flights/policies/flights.yaml").read_text())
    policy["evaluation"] |= {"data": "held_out.parquet", "slices": [], "metrics": [{"name": "log_loss"}]}
    policy["shadow"] |= {"min_pairs": 60}
    policy["canary"] |= {"steps": [25, 95], "bake_s": 5, "soak_s": 5, "min_units": 20}
    policy["drift"] = {
        "window_s": 60,
        "k": 1,
        "m": 1,
        "reference": {"kind": "file", "path": "spring.parquet"},
    }
    return policy


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stand]:
    """A stack whose endpoint `flights` drifts from its first request on: trained on winter, asked in July."""
    made = Stand(own_settings(tmp_path_factory.mktemp("retraining")))
    folder = made.settings.policy_dir
    (folder / "sums.yaml").unlink()
    (folder / "flights.yaml").write_text(yaml.safe_dump(flights_policy()))
    flights = retrain.labelled_flights()
    winter = retrain.between(flights, "2013-01-01", "2013-04-01")
    july = retrain.between(flights, "2013-07-01", "2013-07-21")
    later = retrain.between(flights, "2013-07-21", "2013-08-01")  # after all that retraining may have seen
    fitted = retrain.fit(winter)
    sample = winter.sample(5000, random_state=1)
    answers = retrain.probabilities(fitted, sample)
    sample[list(FEATURES)].assign(prediction=answers).to_parquet(folder / "spring.parquet")
    later[[*FEATURES, LABEL]].to_parquet(folder / "held_out.parquet", index=False)
    july[list(FEATURES)].to_parquet(folder / "live.parquet", index=False)
    try:
        made.interlock("up")
        # as its person would do it for the first time, by hand
        first = "from examples.flights.retrain import retrain; print(retrain(until='2013-04-01'))"
        run(made, "-W", "ignore", "-c", first)
        await_release(made, "1")
        yield made
    finally:
        made.interlock("down", check=False)


def run(stand: Stand, *arguments: str) -> None:
    """Python in the project's folder, against this stack."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env=stand.environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def await_release(stand: Stand, version: str) -> dict[str, Any]:
    """The release of a version once it is over."""
    found: list[dict[str, Any]] = []

    def over() -> bool:
        releases = json.loads(stand.interlock("history", "flights", "--json"))
        found[:] = [one for one in releases if one["version"] == version]
        return bool(found) and bool(found[0]["ended_at"])

    eventually(over, 400, 2)
    assert found[0]["state"] == "PROMOTED", found[0]
    return found[0]


@pytest.fixture(scope="module")
def travellers(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """July's flights, asked about in their order; the folder of what was answered."""
    folder = tmp_path_factory.mktemp("travellers")
    key = folder / "key"
    key.write_text(Keys(stand.settings).create("e2e"))
    command = [sys.executable, "-m", "examples.flights.traffic", "--with-parent", "--rate", str(PER_S)]
    command += ["--url", f"{stand.settings.gateway_url}/flights/invocations", "--key-file", str(key)]
    command += ["--rows", str(stand.settings.policy_dir / "live.parquet"), "--out", str(folder)]
    process = subprocess.Popen(command, cwd=PROJECT)
    try:
        yield folder
    finally:
        process.terminate()
        process.wait(60)


def test_drift_asks_for_retraining_and_the_retrained_version_is_promoted(
    stand: Stand, travellers: Path
) -> None:
    run(stand, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", DEPLOYMENTS)
    before = json.loads(stand.interlock("status", "flights", "--json"))["champion"]
    began = time.time()

    def judged() -> dict[str, Any]:
        return json.loads(stand.interlock("drift", "flights", "--again", "--json"))

    def asked() -> bool:
        found = judged()
        print(found["row"], found["actions"], found["rows"], found["done"])
        return "ask for retraining" in found["actions"]

    eventually(asked, 240, 15)
    eventually(lambda: runs_of(stand, "retrain-flights"), 60, 2)
    asked()  # asking again for the same window, or soon, trains nothing twice
    eventually(lambda: runs_of(stand, "retrain-flights")[0]["state_type"] in ("COMPLETED", "FAILED"), 240, 2)
    (trained,) = runs_of(stand, "retrain-flights")
    assert trained["state_type"] == "COMPLETED", trained["state"]
    version = str(int(before) + 1)
    release = await_release(stand, version)
    assert release["champion"] == before
    assert json.loads(stand.interlock("status", "flights", "--json"))["champion"] == version
    print(release["verdicts"]["evaluate"]["reason"])
    print(f"from the first look to the new champion: {release['ended_at'] - began:.0f} s")
    answers = [json.loads(line) for line in (travellers / "requests.jsonl").read_text().splitlines()]
    assert {one["status"] for one in answers} == {200}
    assert {one["version"] for one in answers if one["time"] > release["decided_at"] + 1} == {version}


def runs_of(stand: Stand, deployment: str) -> list[dict[str, Any]]:
    """Flow runs of a deployment."""
    body = {"deployments": {"name": {"any_": [deployment]}}}
    url = f"{stand.settings.prefect_url}/flow_runs/filter"
    return httpx.post(url, json=body, timeout=30).json()
