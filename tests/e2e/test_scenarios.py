"""What an upstream can break, on a real stack under traffic: nothing is rolled back, a person is told."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from serving.gateway.keys import Keys
from tests.e2e.stand import POLICY, Stand, Traffic, eventually, own_settings, promote

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.xdist_group("real-stack")]

SCENARIOS = (
    POLICY.replace("bake_s: 12", "bake_s: 3")
    + """
watch: {look_every_s: 2, run_s: 40, quality: 0.8, control: {every_s: 60}}
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
    """As soon as it exists, what every version depends on is broken."""
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


def test_a_broken_upstream_schema_alerts_and_rolls_nothing_back(
    stand: Stand, steady: Traffic, url: str
) -> None:
    champion = stand.status()["champion"]
    began = time.time()
    with Traffic(url, Keys(stand.settings).create("broken"), per_s=PER_S, columns=("a",)) as broken:
        eventually(lambda: told(stand, champion, began), 200, 2)
    assert {status for status, _ in broken.since(0)} == {400}
    assert stand.status()["champion"] == champion
    assert {status for status, _ in steady.since(began)} == {200}


def told(stand: Stand, version: str, since: float) -> list[str]:
    """Critical alerts about a version since a moment."""
    lines = [line for line in stand.audit("alert") if line["details"]["severity"] == "critical"]
    return [
        line["details"]["message"]
        for line in lines
        if line["time"] > since and f"traffic stays on version {version}" in line["details"]["message"]
    ]
