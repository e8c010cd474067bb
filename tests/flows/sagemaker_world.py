"""The same world with its endpoint on the double of SageMaker: the real boto3, time by hand.

What takes minutes there takes minutes of the hand clock here: updates, metrics, captures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.policy import Policy
from serving.endpoint import Slot
from serving.sagemaker.endpoint import SageMakerEndpoint
from tests.configs.policies import sagemaker_content
from tests.doubles.aws.cloud import Cloud
from tests.flows.world import Version, World
from tests.serving.contract.platforms import model_folder

MINUTE_S = 60.0
CANARY = {
    "look_every_s": 20,
    "lease_s": 300,
    "bake_s": 120,
    "soak_s": 180,
    "ask_after_s": 36_000,
    "settle_s": 0,
}


class SageMakerWorld(World):
    """An endpoint on SageMaker under steady traffic."""

    def __init__(self, folder: Path, cloud: Cloud, *, requests_per_s: int = 4) -> None:
        super().__init__(folder, requests_per_s=requests_per_s)
        self.cloud = cloud
        cloud.clock = self.clock
        cloud.start_s, cloud.update_s, cloud.weights_s = 240.0, 300.0, 45.0
        cloud.metrics_delay_s, cloud.capture_delay_s = 90.0, 540.0
        content = self.policy.model_dump(mode="json")
        content |= {
            "platform": "sagemaker",
            "assign_by": "request",
            "canary": {**content["canary"], **CANARY},
            "sagemaker": sagemaker_content(
                capture={"uri": "s3://models/captures", "delay_s": 600},
                autoscale={"max_instances": 3, "value": 4},
                alarm_errors_per_minute=100_000,
                price_per_hour={"ml.m5.large": 0.138},
            ),
        }
        self.policy = Policy.model_validate(content)
        files = model_folder(folder / "model")
        endpoint: Any = SageMakerEndpoint(
            "flights", self.policy, self.settings, clock=self.clock, sleep=self.sleep, fetch=lambda _: files
        )
        self.endpoint = endpoint

    def add(self, number: str, version: Version) -> None:
        """Register a version."""
        self.versions[number] = version

        def answer(body: bytes) -> Any:
            self.asked.append(number)
            return version.answer(body, self._rng)

        self.cloud.behave(number, answer)

    def sleep(self, seconds: float) -> None:
        """Let time pass second by second, with its traffic; a live run renews its claim meanwhile."""
        left = seconds
        while left > 0:
            step = min(1.0, left)
            left -= step
            self.clock.now += step
            self.keep_claim()
            found = self.cloud.sagemaker.endpoints.get("flights")
            if found is not None and found.variants and step == 1.0:
                for _ in range(self.requests_per_s):
                    self._sent += 1
                    self.cloud.invoke("flights", f'"body {self._sent}"'.encode())
            self.on_second()

    def weights(self) -> dict[str, float]:
        """Version to its share of the live requests, in percent."""
        found = self.cloud.sagemaker.endpoints.get("flights")
        weights = {name: one.weight for name, one in found.variants.items()} if found else {}
        whole = sum(weights.values())
        return {name.partition("-v")[2]: 100 * one / whole for name, one in weights.items() if one}

    def close(self) -> None:
        """Stop the double."""
        self.cloud.close()

    def serving(self) -> tuple[str, int]:
        """The default's version, and the share that the weights really give to the other one."""
        found = self.cloud.sagemaker.endpoints["flights"]
        route = self.endpoint.describe().route
        assert route is not None
        total = sum(one.weight for one in found.variants.values())
        other = sum(one.weight for name, one in found.variants.items() if name.startswith(route.other.value))
        return route.default_version, round(10_000 * other / total)

    def slots(self) -> tuple[str, str]:
        """What blue and green hold."""
        held = self.endpoint.describe().versions
        return held[Slot.BLUE], held[Slot.GREEN]
