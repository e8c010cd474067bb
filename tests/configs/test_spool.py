"""A shadow needs something to replay."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from configs.policy import Policy
from tests.configs.policies import valid_content


def test_a_shadow_without_a_spool_is_refused_with_the_way_out() -> None:
    content = valid_content() | {"capture": {"drop": ["ssn"], "spool": {"enabled": False}}}
    with pytest.raises(ValidationError, match=r"capture\.spool\.enabled.*capture\.spool\.encrypt"):
        Policy.model_validate(content)
    Policy.model_validate(content | {"shadow": {"enabled": False, "reason": "no copies of requests here"}})
