"""What a policy for SageMaker may say, and what it is told."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from configs.policy import Policy
from tests.configs.policies import sagemaker_content, valid_content

CAPTURE = {"uri": "s3://models/captures"}


def content(section: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        **valid_content(),
        "platform": "sagemaker",
        "assign_by": "request",
        "canary": {"lease_s": 300},
        "sagemaker": sagemaker_content(**(section or {"capture": CAPTURE})),
        **more,
    }


def test_a_whole_one_is_accepted() -> None:
    assert Policy.model_validate(content()).platform == "sagemaker"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sagemaker": None}, "needs a section"),
        ({"assign_by": "user"}, "splits requests, not users"),
        ({"sagemaker": sagemaker_content()}, "shadow.enabled needs sagemaker.capture"),
        ({"capture": {"drop": ["name"]}}, "SageMaker records whole requests"),
        ({"canary": {"lease_s": 30}}, "canary.lease_s must be three times"),
        ({"sagemaker": sagemaker_content(capture=CAPTURE, subnets=["subnet-1"])}, "go together"),
        ({"sagemaker": sagemaker_content(capture={"uri": "models"})}, "pattern"),
        (
            {"sagemaker": sagemaker_content(autoscale={"min_instances": 0, "max_instances": 1, "value": 1})},
            "1",
        ),
        (
            {"sagemaker": sagemaker_content(autoscale={"min_instances": 3, "max_instances": 1, "value": 1})},
            "less",
        ),
    ],
)
def test_what_sagemaker_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Policy.model_validate(content(**changes))


def test_elsewhere_none_of_that_is_asked() -> None:
    assert Policy.model_validate({**valid_content(), "assign_by": "user"}).sagemaker is None


def test_few_hosts_of_a_versions_own_are_warned_of() -> None:
    few = Policy.model_validate(content())
    assert "a noisy host looks like a bad version" in few.warnings[0]
    section = sagemaker_content(capture=CAPTURE, instances=3)
    assert Policy.model_validate(content(section)).warnings == ()
    assert Policy.model_validate(valid_content()).warnings == (), "locally both versions share the machine"
