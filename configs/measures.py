"""The policy's part about other evidence of a canary: named measures of a request, and labelled quality.

A measure is a number that the platform reports for a request besides its times, such as a language
model's time to first token. More of it is worse. It is judged like service time: how often does the
candidate exceed the champion's past quantiles, and the absolute budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from configs.section import Section

MeasureName = Literal["ttft_ms", "itl_ms", "tokens_in", "tokens_out", "cost_usd"]
Quantile = Literal["p50", "p90", "p95", "p99"]

MEASURES: Mapping[str, str] = {
    "ttft_ms": "time to first token, ms",
    "itl_ms": "mean time between tokens, ms",
    "tokens_in": "tokens of the prompt",
    "tokens_out": "tokens of the answer",
    "cost_usd": "cost of the request, US dollars",
}


class MeasureBudget(Section):
    """Absolute budgets in the measure's own unit; absent quantiles are not checked."""

    p50: float | None = Field(default=None, gt=0, description="Median.")
    p95: float | None = Field(default=None, gt=0, description="95th percentile.")
    p99: float | None = Field(default=None, gt=0, description="99th percentile.")


class Measure(Section):
    """One measure of the candidate against the champion's, as ratios."""

    tolerance: float = Field(default=0.1, ge=0, description="More by this factor minus one never rolls back.")
    margin: float = Field(default=0.2, gt=0, description="More than this must be excluded before promotion.")
    quantiles: tuple[Quantile, ...] = Field(
        default=("p50", "p95"), description="Quantiles whose non-inferiority promotion requires."
    )
    budget: MeasureBudget = Field(default_factory=MeasureBudget, description="Absolute budget, in its unit.")


class Quality(Section):
    """Labelled quality of the candidate against the champion's: badness is 1 - score, in [0, 1]."""

    tolerance: float = Field(default=0.0, ge=0, lt=1, description="Excess badness that never rolls back.")
    margin: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Excess badness that must be excluded before promotion; null: labels may roll back, but "
        "promotion does not wait for them.",
    )
