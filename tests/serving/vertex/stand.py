"""A Vertex endpoint of ours, with Google's real clients, against the loopback double."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.policy import Policy
from configs.settings import Settings
from serving.vertex.endpoint import VertexEndpoint
from tests.configs.policies import valid_content, vertex_content
from tests.doubles.google.vertex import VertexDouble


def vertex_policy(**section: Any) -> Policy:
    return Policy.model_validate(
        {
            **valid_content(),
            "platform": "vertex",
            "assign_by": "request",
            "canary": {"lease_s": 300},
            "vertex": vertex_content(**section),
        }
    )


def vertex_endpoint(
    double: VertexDouble,
    folder: Path,
    *,
    name: str = "flights",
    policy: Policy | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = lambda _: None,
) -> VertexEndpoint:
    """As the factory makes it, but for the version's files, which are a line of text here."""

    def fetch(uri: str) -> Path:
        made = folder / uri.rsplit("/", 1)[1].replace("+", "-")
        made.mkdir(exist_ok=True)
        (made / "MLmodel").write_text(uri)
        return made

    return VertexEndpoint(
        name,
        policy or vertex_policy(),
        Settings(state_dir=folder, google_api_url=double.url),
        fetch=fetch,
        clock=clock,
        sleep=sleep,
    )
