"""The same world with its endpoint on the double of Vertex AI: Google's real clients, time by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.policy import Policy
from configs.settings import Settings
from serving.endpoint import Slot
from serving.vertex.endpoint import VertexEndpoint
from tests.configs.policies import vertex_content
from tests.doubles.google.vertex import VertexDouble
from tests.flows.sagemaker_world import CANARY
from tests.flows.world import Version, World

ID = "interlock-flights"


class VertexWorld(World):
    """An endpoint on Vertex AI under steady traffic. Logs come minutes late, metrics as well."""

    def __init__(self, folder: Path, *, requests_per_s: int = 4, log_delay_s: float = 240.0) -> None:
        super().__init__(folder, requests_per_s=requests_per_s)
        self.double = VertexDouble(clock=self.clock)
        self.double.log_delay_s = log_delay_s
        content = self.policy.model_dump(mode="json")
        content |= {
            "platform": "vertex",
            "assign_by": "request",
            "canary": {**content["canary"], **CANARY},
            "vertex": vertex_content(
                request_log={"table": "acme-models.interlock.requests", "delay_s": 600},
                metrics_delay_s=120,
                price_per_hour=1.2,
            ),
        }
        self.policy = Policy.model_validate(content)
        self._folder = folder
        endpoint: Any = VertexEndpoint(
            "flights",
            self.policy,
            Settings(google_api_url=self.double.url),
            fetch=self._files,
            clock=self.clock,
            sleep=self.sleep,
        )
        self.endpoint = endpoint

    def add(self, number: str, version: Version) -> None:
        """Register a version."""
        self.versions[number] = version
        self.double.behave(number, lambda body: version.answer(body, self._rng))

    def sleep(self, seconds: float) -> None:
        """Let time pass second by second, with its traffic; a live run renews its claim meanwhile."""
        left = seconds
        while left > 0:
            step = min(1.0, left)
            left -= step
            self.clock.now += step
            self.keep_claim()
            if step == 1.0 and self.weights():
                for _ in range(self.requests_per_s):
                    self._sent += 1
                    self.double.send(ID, json.dumps({"instances": [f"body {self._sent}"]}).encode())
            self.on_second()

    def weights(self) -> dict[str, float]:
        """Version to its share of the live requests, in percent."""
        found = self.double.endpoints.get(ID)
        if found is None:
            return {}
        versions = {one.id: one.display_name for one in found.deployed_models}
        return {versions[name]: float(share) for name, share in found.traffic_split.items() if share}

    def slots(self) -> tuple[str, str]:
        """What blue and green hold."""
        held = self.endpoint.describe().versions
        return held[Slot.BLUE], held[Slot.GREEN]

    def close(self) -> None:
        """Stop the double."""
        self.double.close()

    def _files(self, uri: str) -> Path:
        made = self._folder / uri.rsplit("/", 1)[1]
        made.mkdir(exist_ok=True)
        (made / "MLmodel").write_text(uri)
        return made
