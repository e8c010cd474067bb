"""The policy's part about the offline gate: on which rows, by which metrics, how much worse is too much."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, model_validator

from configs.section import LatencyBudget, Probability, Section


class Metric(Section):
    """One offline metric with its threshold and its non-regression margin."""

    name: str = Field(
        description="accuracy, f1, roc_auc, log_loss, brier, calibration_error, mae, rmse, mape, ndcg, "
        "ndcg@K, or a dotted callable (labels, predicted) -> number."
    )
    min: float | None = Field(
        default=None, description="Worse than this fails, for metrics where more is better."
    )
    max: float | None = Field(
        default=None, description="Worse than this fails, for metrics where less is better."
    )
    margin: float | None = Field(
        default=0.0,
        ge=0,
        description="How much worse than the champion is tolerated (paired interval); null: not compared.",
    )


class Slice(Section):
    """Rows that must not regress on their own."""

    column: str = Field(description="Column to slice by; every value is a slice (numbers: quartile bins).")
    bins: tuple[float, ...] = Field(
        default=(), description="Edges for a column of numbers instead of quartiles: [6, 18] makes 3 slices."
    )
    metric: str = Field(description="Metric of `metrics` that is checked on the slice.")
    margin: float = Field(ge=0, description="Tolerated regression on the slice.")
    min_rows: int = Field(default=200, ge=1, description="A smaller slice is INCONCLUSIVE.")
    required: bool = Field(default=False, description="An INCONCLUSIVE slice blocks the release.")

    @model_validator(mode="after")
    def _rising(self) -> Slice:
        if any(a >= b for a, b in itertools.pairwise(self.bins)):
            raise ValueError("evaluation.slices[].bins must rise")
        return self


class Cost(Section):
    """What one call costs, in dollars, from the operator's prices."""

    per_call_usd: float | None = Field(
        default=None, ge=0, description="Price of one call, where it is known."
    )
    per_hour_usd: float | None = Field(
        default=None, ge=0, description="Else the price of one replica for an hour ..."
    )
    calls_per_s: float | None = Field(
        default=None,
        gt=0,
        description="... and the calls that it answers a second; left out: measured, one call at a time.",
    )
    max_usd: float | None = Field(default=None, ge=0, description="Dearer fails.")
    margin: float | None = Field(
        default=None, ge=0, description="Dearer than the champion by more than this factor minus one fails."
    )

    @model_validator(mode="after")
    def _priced(self) -> Cost:
        if (self.per_call_usd is None) == (self.per_hour_usd is None):
            raise ValueError("evaluation.cost needs one price: per_call_usd or per_hour_usd")
        if self.max_usd is None and self.margin is None:
            raise ValueError("evaluation.cost needs a limit: max_usd, margin or both")
        return self

    @property
    def is_measured(self) -> bool:
        """Whether the price of a call follows from the time that one takes."""
        return self.per_call_usd is None and self.calls_per_s is None


class Leakage(Section):
    """Held-out rows that the version has learnt from prove nothing."""

    check: bool = Field(default=True, description="Compare with the training data logged with the version.")
    artifact: str = Field(
        default="reference.parquet",
        description="This file of the version's MLflow run is its training data (parquet or CSV), else the "
        "run's dataset logged with the context 'training'.",
    )
    max_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of held-out rows that may be found in the training data, above what the training "
        "data's own repetitions explain; more fails.",
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="Columns that say nothing about identity (row numbers, load times)."
    )


class Freshness(Section):
    """Old rows prove little about today's traffic."""

    max_age_s: float = Field(gt=0, description="Older rows are INCONCLUSIVE.")
    column: str | None = Field(
        default=None,
        description="The newest value of this column (time, date, or seconds since the epoch) is the age; "
        "left out: the time of the file.",
    )


class Live(Section):
    """Whether the held-out rows resemble live traffic. Warns only: it never blocks."""

    reach_s: float = Field(default=86_400, gt=0, description="How far back captured answers are looked at.")
    min_rows: int = Field(default=500, ge=100, description="Fewer captured answers are not compared.")
    max_distance: float = Field(
        default=0.1,
        gt=0,
        description="The champion's answers live and on the held-out rows further apart than this warn "
        "(classes: total variation, 0 to 1; numbers: Wasserstein distance in standard deviations).",
    )


class Evaluation(Section):
    """The offline gate: candidate against champion on held-out rows."""

    data: str = Field(
        description="Held-out rows: parquet or CSV, a path or a URL (s3://, gs://, https://); "
        "runs:/RUN_ID/DATASET of an MLflow run; mlflow-dataset:NAME."
    )
    label: str = Field(description="Column with the truth; rows without it are left out, and counted.")
    task: Literal["classification", "regression", "ranking"] = Field(
        description="Which kind of metrics applies."
    )
    group: str | None = Field(
        default=None,
        description="Column that names what rows belong together (a query, a user): they are resampled "
        "together. Ranking needs it.",
    )
    metrics: tuple[Metric, ...] = Field(min_length=1, description="What is measured; see Metric.")
    slices: tuple[Slice, ...] = Field(default=(), description="Where it is measured apart; see Slice.")
    latency_ms: LatencyBudget = Field(
        default_factory=LatencyBudget, description="Budget of one offline call."
    )
    cost: Cost | None = Field(default=None, description="Budget of one call in dollars; none without it.")
    confidence: Probability = Field(default=0.95, description="Of the paired intervals.")
    min_rows: int = Field(default=1000, ge=1, description="Fewer held-out rows are INCONCLUSIVE.")
    max_rows: int = Field(default=200_000, ge=1, description="More rows are sampled down (seeded).")
    leakage: Leakage = Field(default_factory=Leakage, description="Held-out rows in the training data.")
    fresh: Freshness | None = Field(default=None, description="How old the rows may be; any age without it.")
    live: Live = Field(default_factory=Live, description="Held-out rows against live traffic.")
    allow_signature_change: bool = Field(
        default=False,
        description="Off: a signature that breaks the champion's clients fails.",
    )

    evaluators: bool = Field(
        default=True,
        description="MLflow's evaluators compute the metrics again; what they miss is an ERROR.",
    )
    data_page: bool = Field(
        default=True, description="Evidently's page on columns and metrics is made and logged."
    )

    @model_validator(mode="after")
    def _grouped(self) -> Evaluation:
        if self.task == "ranking" and self.group is None:
            raise ValueError("evaluation.task ranking needs evaluation.group: the column of the query")
        names = [metric.name for metric in self.metrics]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"evaluation.metrics names {', '.join(twice)} more than once")
        return self

    @property
    def times_calls(self) -> bool:
        """Whether a budget depends on how long single calls take where the evaluation runs."""
        return self.latency_ms != LatencyBudget() or (self.cost is not None and self.cost.is_measured)
