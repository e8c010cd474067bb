"""What the tests of the contract share: routes, and waiting for what becomes visible later."""

from __future__ import annotations

import dataclasses
import time

import pandas as pd
import pytest

from serving.endpoint import Endpoint, Observations, Route, Slot
from tests.serving.contract.platforms import Platform
from tests.serving.gateway.lab import eventually


def uri(version: str) -> str:
    return f"models:/model/{version}"


def first(endpoint: Endpoint, generation: int = 1) -> Route:
    return Route(endpoint.name, generation, Slot.BLUE, "1", salt="salt")


def share(route: Route, share_bp: int, lease_s: float = 60) -> Route:
    return dataclasses.replace(route, share_bp=share_bp, until=time.time() + lease_s if share_bp else 0.0)


def versions_seen(platform: Platform, endpoint: Endpoint, count: int = 30) -> set[str]:
    return {platform.send(endpoint, user=f"user-{number}")[1] for number in range(count)}


def needs(endpoint: Endpoint, **capabilities: bool) -> None:
    """Skip where the platform says that it cannot do this."""
    for name, wanted in capabilities.items():
        if bool(getattr(endpoint.capabilities, name)) is not wanted:
            pytest.skip(f"{type(endpoint).__name__}: {name} is not {wanted}")


def as_sent(frame: pd.DataFrame) -> pd.DataFrame:
    """Observations in the order of their requests: with several threads a gateway may log them in another."""
    return frame.sort_values("time", kind="stable", ignore_index=True)


def settled(endpoint: Endpoint, cursor: str, rows: int) -> Observations:
    """Observations since the cursor, once there are as many as were sent."""
    eventually(lambda: len(endpoint.observations(cursor).frame) >= rows)
    return endpoint.observations(cursor)
