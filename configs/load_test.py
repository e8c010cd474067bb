"""What a version must bear in staging before people or users are asked to trust it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.section import LatencyBudget, Section


class LoadTest(Section):
    """An open-loop load test: requests come when they are due, whether the last one was answered or not."""

    rate_per_s: float = Field(gt=0, le=5000, description="The rate expected in production, for one slot.")
    duration_s: float = Field(default=20, ge=1, description="How long each rate is held.")
    warm_up_s: float = Field(default=2, ge=0, description="The beginning of each rate that does not count.")
    latency_ms: LatencyBudget = Field(
        default_factory=LatencyBudget,
        description="What clients may wait at most, from the moment that a request is due; where all are "
        "absent, those of canary.latency.budget_ms.",
    )
    max_errors: float = Field(
        default=0.001, ge=0, lt=1, description="Share of requests that may fail at the expected rate."
    )
    search_max_rate: float = Field(
        default=4.0, ge=1, description="The highest rate within budget is searched up to this multiple."
    )
    steps_max: int = Field(default=8, ge=1, le=30, description="Most rates that are tried.")
    payloads: Literal["evaluation", "captures"] = Field(
        default="evaluation",
        description="What is sent: held-out rows (a language model: its evaluation's prompts), or what "
        "production recorded (as redacted as it is; not for language models).",
    )
    payloads_max: int = Field(default=500, ge=1, description="Different requests; they are sent in turn.")

    @model_validator(mode="after")
    def _measured(self) -> LoadTest:
        if self.warm_up_s >= self.duration_s:
            raise ValueError("load_test.warm_up_s must be shorter than load_test.duration_s")
        return self
