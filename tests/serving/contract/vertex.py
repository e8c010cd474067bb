"""Vertex AI under the contract: Google's real clients against the double. Imports seconds of Google."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Self

from serving.endpoint import Endpoint
from serving.vertex.endpoint import VertexEndpoint
from tests.doubles.google.vertex import VertexDouble
from tests.serving.contract.platforms import obey
from tests.serving.vertex.stand import vertex_endpoint, vertex_policy

_NUMBERS = itertools.count()


class VertexPlatform:
    """One project in one region; time runs, but nothing takes long."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._service = VertexDouble()
        self._service.break_start("broken")
        for version in ("1", "2", "3"):
            self._service.behave(version, obey)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.close()

    def endpoint(self) -> VertexEndpoint:
        return self._open(f"contract-{next(_NUMBERS)}")

    def same(self, endpoint: Endpoint) -> VertexEndpoint:
        return self._open(endpoint.name)

    def dispose(self, endpoint: Endpoint) -> None:
        del endpoint

    def send(self, endpoint: Endpoint, command: dict | None = None, *, user: str = "") -> tuple[int, str]:
        del user
        name = f"interlock-{endpoint.name}"
        status, deployed, _ = self._service.send(name, json.dumps(command or {}).encode())
        versions = {one.id: one.display_name for one in self._service.endpoints[name].deployed_models}
        return status, versions[deployed]

    def _open(self, name: str) -> VertexEndpoint:
        policy = vertex_policy().model_copy(update={"endpoint": name})
        return vertex_endpoint(
            self._service, self._folder, name=name, policy=policy, sleep=lambda s: time.sleep(min(s, 0.02))
        )
