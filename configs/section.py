"""What all parts of a policy share: closed, immutable sections and a few types of values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"
URL_PATTERN = r"^https?://"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of the policy: immutable, and closed to keys that it does not know, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LatencyBudget(Section):
    """Absolute budgets in milliseconds; absent quantiles are not checked."""

    p50: float | None = Field(default=None, gt=0, description="Median, ms.")
    p95: float | None = Field(default=None, gt=0, description="95th percentile, ms.")
    p99: float | None = Field(default=None, gt=0, description="99th percentile, ms.")
