"""The budgets by use that docs/llm.md shows are whole sections of a policy, and become service levels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.policy import Policy
from evals.watch import levels_of
from tests.configs.policies import valid_content

PAGE = Path(__file__).parents[2] / "docs" / "llm.md"


def snippets() -> dict[str, dict[str, Any]]:
    """The section's snippets by the endpoint that they name."""
    section = PAGE.read_text().split("## Budgets by use")[1].split("\n## ")[0]
    blocks = re.findall(r"```yaml\n# endpoint: (\S+)\n(.*?)```", section, re.DOTALL)
    return {name: yaml.safe_load(text) for name, text in blocks}


@pytest.mark.parametrize(
    ("endpoint", "levels"),
    [
        ("support-chat", {"ttft_ms/p50": 300, "ttft_ms/p95": 800, "itl_ms/p95": 60}),
        ("support-document", {"latency/p95": 60_000, "cost_usd/p50": 0.005, "cost_usd/p95": 0.02}),
        ("support-realtime", {"ttft_ms/p95": 250, "ttft_ms/p99": 400, "itl_ms/p99": 40}),
    ],
)
def test_a_budget_by_use_is_watched(endpoint: str, levels: dict[str, float]) -> None:
    content = valid_content() | {"endpoint": endpoint, "serving": {"runtime": "vllm"}} | snippets()[endpoint]
    policy = Policy.model_validate(content)
    found = {one.name: one.budget_ms or one.most for one in levels_of(policy) if one.name != "errors"}
    assert found == levels
    assert len(snippets()) == 3
