"""The bench: what it opens follows the policy that it has now."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.policy import Policy
from configs.settings import Settings
from serving.fake import FakeEndpoint
from tasks import bench as module
from tasks.bench import Bench
from tests.configs.policies import valid_content


def test_a_platform_opened_before_the_policy_changed_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Staging's measured limit comes into the policy when the endpoint has long been asked things."""
    opened: list[int | None] = []

    def open_endpoint(policy: Policy, *_: object, **__: object) -> FakeEndpoint:
        opened.append(policy.replicas.gateway_limit)
        return FakeEndpoint(policy.endpoint)

    monkeypatch.setattr(module, "open_endpoint", open_endpoint)
    policy = Policy.model_validate(valid_content())
    bench = Bench(policy, Settings(state_dir=tmp_path))
    assert bench.endpoint is bench.endpoint
    replicas = policy.replicas.model_copy(update={"gateway_limit": 7})
    bench.policy = policy.model_copy(update={"replicas": replicas})
    assert bench.endpoint is bench.endpoint
    assert opened == [None, 7]
