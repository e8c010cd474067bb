"""What the operator expects of an endpoint once a version is promoted, and how that is watched.

The service levels are absolute: they say what users must get, whoever serves. Breaking one is
harm; whether going back would help is asked of the previous version, never assumed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.measures import MeasureBudget, MeasureName
from configs.section import LatencyBudget, Probability, Section


class BurnWindow(Section):
    """One rule on the speed at which a budget is spent; both windows must say so.

    Of failures it is 1 - availability; of slow requests what their percentile leaves (p95: 5%).
    """

    long_s: float = Field(gt=0, description="The window that shows that it matters.")
    short_s: float = Field(gt=0, description="The window that shows that it still goes on.")
    rate: float = Field(gt=0, description="Times the speed that would just spend the budget in its period.")
    severity: Literal["critical", "warning"] = Field(description="How loud the alert is.")

    @model_validator(mode="after")
    def _ordered(self) -> BurnWindow:
        if self.short_s >= self.long_s:
            raise ValueError("burn: short_s must be shorter than long_s")
        return self


SRE_WORKBOOK = (
    BurnWindow(long_s=3600, short_s=300, rate=14.4, severity="critical"),
    BurnWindow(long_s=21_600, short_s=1800, rate=6, severity="critical"),
    BurnWindow(long_s=259_200, short_s=21_600, rate=1, severity="warning"),
)
"""The numbers of Google's SRE workbook, chapter 5 (2%, 5% and 10% of a 30-day budget spent)."""


class WatchMeasure(Section):
    """One measure of a request as a service level; the budgets of `canary.measures`, after the promotion."""

    budget: MeasureBudget = Field(description="Absolute budget, in its unit.")

    @model_validator(mode="after")
    def _says_something(self) -> WatchMeasure:
        if self.budget == MeasureBudget():
            raise ValueError("watch.measures: a budget needs p50, p95 or p99")
        return self


class Control(Section):
    """Recent requests replayed to the champion and to the previous version: does it suffer too?"""

    pairs: int = Field(default=300, ge=10, description="Most requests replayed for one answer.")
    min_pairs: int = Field(default=30, ge=10, description="Fewer never say that both versions suffer.")
    rate_per_s: float = Field(default=50, gt=0, description="Most replayed requests a second.")
    concurrency: int = Field(default=2, ge=1, description="Replayed requests in flight.")
    every_s: float = Field(
        default=300, ge=0, description="After an answer that did not roll back, ask again no sooner."
    )
    removes: Probability = Field(
        default=0.5, description="Share of the harm that going back must remove, or it does not happen."
    )
    start_cold: bool = Field(
        default=True, description="Start the previous version for this where it no longer runs."
    )


class Watch(Section):
    """The service levels after the promotion, and the automatic way back."""

    enabled: bool = Field(default=True, description="Whether the scheduled watch looks at this endpoint.")
    roll_back: bool = Field(
        default=True, description="Roll back by itself when the previous version is shown to be better."
    )
    error_rate: Probability | None = Field(
        default=0.01,
        description="Failed requests that are tolerated; null: what availability leaves, if that is set.",
    )
    latency_ms: LatencyBudget = Field(
        default_factory=LatencyBudget,
        description="End-to-end budgets; where all are absent, those of canary.latency.budget_ms.",
    )
    measures: dict[MeasureName, WatchMeasure] = Field(
        default_factory=dict,
        description="Budgets of what else is measured of a request, by name. Broken, they alert: replays do "
        "not show them, so they never roll back by themselves.",
    )
    quality: Probability | None = Field(
        default=None, description="Least mean score of labelled answers, in [0, 1]; null: not watched."
    )
    availability: Probability | None = Field(
        default=0.999,
        description="Objective over 30 days for the burn rates of failures; null: none. Those of latency go "
        "by its budgets.",
    )
    burn: tuple[BurnWindow, ...] = Field(
        default=SRE_WORKBOOK, description="Burn rates that alert, of failures and of each latency budget."
    )
    alpha: Probability = Field(
        default=0.01, description="Bound on a false alarm, per version that serves, however long it does."
    )
    look_every_s: float = Field(default=5, gt=0, description="Time between looks of one run.")
    run_s: float = Field(
        default=45,
        ge=0,
        description="How long a scheduled run goes on looking, longer while another endpoint's look is not "
        "over; 0: one look.",
    )
    clear_s: float = Field(default=60, gt=0, description="Harm not seen again for this long is over.")
    control: Control = Field(default_factory=Control, description="The concurrent control.")
