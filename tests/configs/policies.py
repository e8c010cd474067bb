"""Policy texts for the tests of this room."""

from __future__ import annotations

from typing import Any

VALID = """\
endpoint: flights
model: delays
owner: ops@example.org
evaluation:
  data: held_out.parquet
  label: late
  task: classification
  metrics:
    - name: f1
      min: 0.5
shadow:
  score_tolerance: 0.1
canary:
  steps: [5, 25, 50, 95]
  bake_s: 60
"""


def valid_content() -> dict[str, Any]:
    """The same as a mapping."""
    return {
        "endpoint": "flights",
        "model": "delays",
        "owner": "ops@example.org",
        "evaluation": {"data": "d.parquet", "label": "y", "task": "regression", "metrics": [{"name": "mae"}]},
        "shadow": {"score_tolerance": 0.1},
    }
