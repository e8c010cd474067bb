"""The bench refuses what no platform can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.policy import Policy
from configs.settings import Settings
from serving.errors import SetupError
from tasks.bench import Bench
from tests.configs.policies import valid_content


def test_a_prompt_that_no_platform_applies_is_refused_before_anything_is_released(tmp_path: Path) -> None:
    policy = Policy.model_validate(valid_content() | {"prompt": {"name": "manner"}})
    with pytest.raises(SetupError, match="no platform puts it before a model yet"):
        _ = Bench(policy, Settings(state_dir=tmp_path)).endpoint
