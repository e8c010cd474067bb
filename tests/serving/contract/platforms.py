"""The platforms under the contract: how each makes an endpoint, and how live traffic reaches it.

Whatever the platform, a version is told by the request what to do: {"status": 500},
{"sleep_s": 0.3}; the version "broken" never becomes healthy.
"""

from __future__ import annotations

import itertools
import json
from typing import Protocol

from serving.endpoint import Endpoint, Reply
from serving.fake import FakeEndpoint
from tests.serving.gateway.lab import Lab

_NUMBERS = itertools.count()


class Platform(Protocol):
    """What the suite needs of a platform besides its endpoints."""

    def endpoint(self) -> Endpoint:
        """A new one that has never served."""
        ...

    def same(self, endpoint: Endpoint) -> Endpoint:
        """The same endpoint as another process would see it."""
        ...

    def dispose(self, endpoint: Endpoint) -> None:
        """End it, whatever state it is in."""
        ...

    def send(self, endpoint: Endpoint, command: dict | None = None, *, user: str = "") -> tuple[int, str]:
        """One live request: its status and the assigned version."""
        ...


def _obey(body: bytes) -> Reply:
    command = json.loads(body)
    return Reply(command.get("status", 200), b"{}", 1000 * command.get("sleep_s", 0.001))


class FakePlatform:
    def endpoint(self) -> Endpoint:
        made = FakeEndpoint(f"contract-{next(_NUMBERS)}")
        for version in ("1", "2", "3"):
            made.behave(version, _obey)
        made.break_start("broken")
        return made

    def same(self, endpoint: Endpoint) -> Endpoint:
        return endpoint

    def dispose(self, endpoint: Endpoint) -> None:
        del endpoint

    def send(self, endpoint: Endpoint, command: dict | None = None, *, user: str = "") -> tuple[int, str]:
        assert isinstance(endpoint, FakeEndpoint)
        reply = endpoint.send(json.dumps(command or {}).encode(), user=user)
        return reply.status, str(endpoint.observations("0").frame["version"].iloc[-1])


class LocalPlatform:
    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def endpoint(self) -> Endpoint:
        return self._lab.endpoint(f"contract-{next(_NUMBERS)}")

    def same(self, endpoint: Endpoint) -> Endpoint:
        return self._lab.endpoint(endpoint.name)

    def dispose(self, endpoint: Endpoint) -> None:
        self._lab.forget(endpoint.name)

    def send(self, endpoint: Endpoint, command: dict | None = None, *, user: str = "") -> tuple[int, str]:
        path = f"/{endpoint.name}/invocations"
        answer = self._lab.ask(command, path=path, headers={"x-user-id": user})
        return answer.status, answer.headers.get("x-interlock-version", "")
