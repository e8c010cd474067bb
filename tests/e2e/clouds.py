"""SageMaker's and Vertex AI's doubles beside a real stack: releases by the command line, under traffic."""

from __future__ import annotations

import json
import random
import subprocess
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from serving.endpoint import Reply
from tests.configs.policies import sagemaker_content, vertex_content
from tests.doubles.aws.cloud import Cloud
from tests.e2e.stand import INTERLOCK, POLICY, Stand

REQUESTS_PER_S = 60
AWS, GOOGLE = "sums-sagemaker", "sums-vertex"
VERSIONS = ("1", "2", "3")
_LATER = 6
"""Exit status that says that the same command may work later: Prefect's database is busy for a moment."""


@dataclass
class Told:
    """How a command ended, and what it said."""

    status: int
    lines: str


def good(_: bytes) -> Reply:
    """What every version answers while it is well. Latencies differ: no test is shown by a constant."""
    return Reply(200, b'{"predictions": [0.5]}', random.lognormvariate(1.1, 0.3))


class Platform:
    """One double with one endpoint: its traffic, its share, and what its versions answer."""

    def __init__(self, endpoint: str, double: Any) -> None:
        self.endpoint = endpoint
        self.double = double
        self._count = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        for version in ("1", "2"):
            double.behave(version, good)
        double.behave("3", self._fails_live)

    def shares(self) -> dict[str, float]:
        """Version to its fraction of the live requests, as the double splits them."""
        raise NotImplementedError

    def held(self) -> set[str]:
        """Versions for which anything still runs, scales, or is billed."""
        raise NotImplementedError

    def send(self, body: bytes) -> None:
        """One live request."""
        raise NotImplementedError

    def start(self) -> None:
        """Clients begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Clients go away."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=15)
        self.double.close()

    def _fails_live(self, body: bytes) -> Reply:
        """Fine for nobody but the shadow: half of the live requests fail."""
        self._count += 1
        if self.shares().get("3", 0.0) > 0 and self._count % 2:
            return Reply(500, b"{}", 2.0)
        return good(body)

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(1 / REQUESTS_PER_S):
            number += 1
            row = [(number % 100) / 100, (number % 37) / 37]
            if self.shares():
                self.send(json.dumps({"dataframe_split": {"columns": ["a", "b"], "data": [row]}}).encode())


class OnSageMaker(Platform):
    """Weights of the double's production variants."""

    def __init__(self) -> None:
        cloud = Cloud()
        cloud.start_s = cloud.update_s = 1.0
        super().__init__(AWS, cloud)

    def shares(self) -> dict[str, float]:
        found = self.double.sagemaker.endpoints.get(self.endpoint)
        weights = {} if found is None else {name: one.weight for name, one in found.variants.items()}
        whole = sum(weights.values())
        return {name.partition("-v")[2]: weight / whole for name, weight in weights.items() if weight}

    def held(self) -> set[str]:
        variants = self.double.sagemaker.endpoints[self.endpoint].variants
        models = self.double.sagemaker.models.values()
        told = {one["PrimaryContainer"]["Environment"]["INTERLOCK_VERSION"] for one in models}
        named = {*variants, *(name.rpartition("/")[2] for name in self.double.scaling.targets)}
        return told | {name.partition("-v")[2] for name in named}

    def send(self, body: bytes) -> None:
        self.double.invoke(self.endpoint, body)


class OnVertex(Platform):
    """The double's traffic split."""

    def __init__(self) -> None:
        from tests.doubles.google.vertex import VertexDouble

        super().__init__(GOOGLE, VertexDouble(operation_s=1.0))

    def shares(self) -> dict[str, float]:
        found = self.double.endpoints.get(f"interlock-{self.endpoint}")
        if found is None:
            return {}
        versions = {one.id: one.display_name for one in found.deployed_models}
        return {versions[name]: share / 100 for name, share in found.traffic_split.items() if share}

    def held(self) -> set[str]:
        return {
            one.display_name for one in self.double.endpoints[f"interlock-{self.endpoint}"].deployed_models
        }

    def send(self, body: bytes) -> None:
        self.double.send(f"interlock-{self.endpoint}", body)


def policy(endpoint: str) -> str:
    """The stand's policy on the other platform. Its periods are short: a look need not wait for a minute."""
    content = yaml.safe_load(POLICY)
    content |= {"endpoint": endpoint, "model": endpoint, "assign_by": "request"}
    content["canary"] |= {"bake_s": 1, "soak_s": 1, "lease_s": 60}
    content["evaluation"] |= {"evaluators": False, "data_page": False}
    if endpoint == AWS:
        capture = {"uri": "s3://models/captures", "delay_s": 2}
        content["platform"] = "sagemaker"
        content["sagemaker"] = sagemaker_content(capture=capture, metrics_period_s=10, metrics_delay_s=1)
        content["sagemaker"] |= {
            "autoscale": {"max_instances": 3, "value": 4},
            "alarm_errors_per_minute": 10**6,
            "price_per_hour": {"ml.m5.large": 36.0},
        }
    else:
        log = {"table": "acme-models.interlock.requests", "delay_s": 1}
        content["platform"] = "vertex"
        content["vertex"] = vertex_content(
            request_log=log, metrics_period_s=5, metrics_delay_s=1, price_per_hour=36.0
        )
    return yaml.safe_dump(content)


@contextmanager
def both() -> Generator[dict[str, Platform]]:
    """Both doubles, before the stack is up: its worker takes their addresses from the environment."""
    made: dict[str, Platform] = {}
    try:
        for platform in (OnSageMaker(), OnVertex()):
            made[platform.endpoint] = platform
        yield made
    finally:
        for platform in made.values():
            platform.stop()


def release_all(stand: Stand, platforms: dict[str, Platform]) -> dict[str, dict[str, Told]]:
    """Version after version by `interlock release ENDPOINT VERSION --wait`, on all platforms at once."""
    with ThreadPoolExecutor(len(platforms)) as pool:
        told = pool.map(lambda one: _release_each(stand, one), platforms.values())
        return dict(zip(platforms, told, strict=True))


def _release_each(stand: Stand, platform: Platform) -> dict[str, Told]:
    platform.start()
    told: dict[str, Told] = {}
    for version in VERSIONS:
        for _ in range(3):
            told[version] = _release(stand, platform.endpoint, version)
            if told[version].status != _LATER:
                break
    return told


def _release(stand: Stand, endpoint: str, version: str) -> Told:
    command = [*INTERLOCK, "release", endpoint, version, "--wait"]
    done = subprocess.run(
        command, env=stand.environment(), capture_output=True, text=True, timeout=400, check=False
    )
    return Told(done.returncode, f"{done.stdout}\n{done.stderr}")


def register_all(register: Callable[..., str]) -> None:
    """The same model as versions 1, 2 and 3 of both registered models: the doubles tell them apart."""
    register(models=[name for name in (AWS, GOOGLE) for _ in VERSIONS])
