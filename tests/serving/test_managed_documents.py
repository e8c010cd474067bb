"""docs/sagemaker.md and docs/vertex.md: valid policies, and permissions for the adapter's calls only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.policy import Policy
from configs.prices import machine_prices
from tests.configs.policies import valid_content
from tests.serving.sagemaker.test_double import operations

DOCS = Path(__file__).parents[2] / "docs"

BESIDE = {
    "sagemaker:InvokeEndpoint",  # the data plane has a double of its own
    "s3:ListBucket",
    "s3:GetObject",
    "s3:PutObject",
    "iam:PassRole",
    "cloudwatch:DescribeAlarms",  # SageMaker reads them for the caller
}


def block(name: str, language: str) -> str:
    text = (DOCS / f"{name}.md").read_text()
    found = re.search(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    return "\n".join(line.removeprefix(found[1]) for line in found[2].splitlines())


@pytest.mark.parametrize("platform", ["sagemaker", "vertex"])
def test_the_documented_policy_is_valid_and_has_its_prices(platform: str) -> None:
    policy = Policy.model_validate({**valid_content(), **yaml.safe_load(block(platform, "yaml"))})
    assert policy.platform == platform
    assert machine_prices(policy)


def test_the_documented_permissions_are_the_calls_and_no_more() -> None:
    document: dict[str, Any] = json.loads(block("sagemaker", "json"))
    actions = {action for statement in document["Statement"] for action in statement["Action"]}
    assert not any("*" in action for action in actions)
    assert actions == {f"{service}:{name}" for service, name in operations()} | BESIDE
