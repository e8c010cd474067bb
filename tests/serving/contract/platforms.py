"""The platforms under the contract: how each makes an endpoint, and how live traffic reaches it.

Whatever the platform, a version is told by the request what to do: {"status": 500},
{"sleep_s": 0.3}; the version "broken" never becomes healthy.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Protocol

from configs.policy import Policy
from configs.settings import Settings
from serving.endpoint import Endpoint, Reply
from serving.fake import FakeEndpoint
from serving.sagemaker.endpoint import SageMakerEndpoint
from tests.configs.policies import sagemaker_content, valid_content
from tests.doubles.aws.cloud import Cloud
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


def obey(body: bytes) -> Reply:
    command = json.loads(body)
    return Reply(command.get("status", 200), b"{}", 1000 * command.get("sleep_s", 0.001))


class FakePlatform:
    def __init__(self, kind: type[FakeEndpoint] = FakeEndpoint) -> None:
        self._kind = kind

    def endpoint(self) -> Endpoint:
        made = self._kind(f"contract-{next(_NUMBERS)}")
        for version in ("1", "2", "3"):
            made.behave(version, obey)
        made.break_start("broken")
        return made

    def same(self, endpoint: Endpoint) -> Endpoint:
        return endpoint

    def dispose(self, endpoint: Endpoint) -> None:
        del endpoint

    def send(self, endpoint: Endpoint, command: dict | None = None, *, user: str = "") -> tuple[int, str]:
        assert isinstance(endpoint, FakeEndpoint)
        reply = endpoint.send(json.dumps(command or {}).encode(), user=user)
        return reply.status, endpoint.answered_by


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


def sagemaker_policy(endpoint: str = "flights", **section: object) -> Policy:
    """One whose platform is SageMaker, with captures that come at once."""
    here = {"capture": {"uri": "s3://models/captures", "delay_s": 0}, "metrics_delay_s": 0, **section}
    return Policy.model_validate(
        {
            **valid_content(),
            "endpoint": endpoint,
            "platform": "sagemaker",
            "assign_by": "request",
            "canary": {"lease_s": 300},
            "sagemaker": sagemaker_content(**here),
        }
    )


def model_folder(folder: Path) -> Path:
    """What stands for a model's files."""
    folder.mkdir(exist_ok=True)
    (folder / "MLmodel").write_text("flavors: {}")
    return folder


class SageMakerPlatform:
    """The real boto3 against the double of a region; time runs, but nothing takes long."""

    def __init__(self, cloud: Cloud, folder: Path, **section: object) -> None:
        self.cloud = cloud
        self._folder = folder
        self._section = section
        cloud.start_s = cloud.update_s = 0.03
        cloud.weights_s = 0.02
        cloud.broken.add("broken")
        for version in ("1", "2", "3"):
            cloud.behave(version, obey)

    def endpoint(self) -> SageMakerEndpoint:
        return self._open(f"contract-{next(_NUMBERS)}")

    def same(self, endpoint: Endpoint) -> SageMakerEndpoint:
        return self._open(endpoint.name)

    def dispose(self, endpoint: Endpoint) -> None:
        del endpoint

    def send(self, endpoint: Endpoint, command: dict | None = None, *, user: str = "") -> tuple[int, str]:
        variant, reply = self.cloud.invoke(endpoint.name, json.dumps(command or {}).encode())
        return reply.status, variant.partition("-v")[2]

    def _open(self, name: str) -> SageMakerEndpoint:
        return SageMakerEndpoint(
            name,
            sagemaker_policy(name, **self._section),
            Settings(state_dir=self._folder / "state"),
            sleep=lambda seconds: time.sleep(min(seconds, 0.02)),
            fetch=lambda _uri: model_folder(self._folder / "model"),
        )
