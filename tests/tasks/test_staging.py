"""What production takes over from a load test."""

from __future__ import annotations

from typing import Any

import pytest

from configs.policy import Policy
from tasks.staging import with_measured_limit
from tests.configs.policies import valid_content


@pytest.mark.parametrize(
    ("replicas", "measured", "limit"),
    [
        ({"concurrency": 4}, 1, None),
        ({"concurrency": 4}, 7, 7),
        ({"batch": {"max_rows": 8}}, 9, None),
        ({"batch": {"max_rows": 8}}, 17, 17),
        ({"gateway_limit": 3}, 7, 3),
        ({"concurrency": 4}, None, None),
    ],
)
def test_a_measured_limit_never_throttles_below_the_policys_own(
    replicas: dict[str, Any], measured: float | None, limit: int | None
) -> None:
    policy = Policy.model_validate({**valid_content(), "replicas": replicas})
    findings = [{"metric": "concurrency_per_replica", "candidate": measured}] if measured else []
    limited = with_measured_limit(policy, {"stage": {"findings": findings}})
    assert limited.replicas.gateway_limit == limit
