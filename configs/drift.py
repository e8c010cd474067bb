"""The policy's part about drift: what is compared with what, and what counts as a change.

A column alarms when its distance to the reference is over its threshold AND significant after
Benjamini-Hochberg AND so in k of the last m windows. Each of the three alone alarms on nothing:
distances are large on small samples, p-values are small on large ones, and one odd day is one day.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Probability, Section


class DriftReference(Section):
    """What a window is compared with. The same season, or the data that the version learnt from."""

    kind: Literal["training", "season", "file"] = Field(
        default="training",
        description="training: data logged with the champion's run; season: captures of `season_s` ago; "
        "file: a table.",
    )
    artifact: str = Field(
        default="reference.parquet",
        description="training: this file of the champion's MLflow run (parquet or CSV), else the run's "
        "dataset logged with the context 'training'.",
    )
    season_s: float = Field(
        default=604_800, gt=0, description="season: how long ago the window began that is compared with."
    )
    path: str | None = Field(
        default=None, description="file: parquet or CSV; a relative path is meant from the policy's folder."
    )
    prediction: str = Field(
        default="prediction",
        description="Column of the reference with the version's answers; the champion scores the reference "
        "where there is none.",
    )

    @model_validator(mode="after")
    def _has_path(self) -> DriftReference:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError("drift.reference.path belongs to kind: file, which cannot do without it")
        return self


class DriftThresholds(Section):
    """Effects that matter. Smaller ones never alarm, however significant they are."""

    numeric: float = Field(
        default=0.1, gt=0, description="Wasserstein distance, in standard deviations of the reference."
    )
    categorical: float = Field(default=0.1, gt=0, lt=1, description="Jensen-Shannon distance, 0 to 0.83.")
    prediction: float = Field(
        default=0.1, gt=0, description="The same two distances, for the version's answers."
    )
    columns: dict[str, float] = Field(
        default_factory=dict, description="Thresholds of single columns, in the unit of their kind."
    )


class DriftBudgets(Section):
    """Excess over the reference that data quality may show, as shares of rows."""

    nulls: float = Field(default=0.05, ge=0, lt=1, description="More missing values of a column: broken.")
    refused: float = Field(
        default=0.05, ge=0, lt=1, description="Requests answered 400, 415 or 422: broken schema."
    )
    out_of_range: float = Field(
        default=0.05, ge=0, lt=1, description="Values outside the reference's range: input drift."
    )
    new_categories: float = Field(
        default=0.05, ge=0, lt=1, description="Values in categories that the reference lacks: input drift."
    )
    outputs: float | None = Field(
        default=None,
        gt=0,
        description="While a release is recent: how far the new version's answers to the same traffic may be "
        "from the old one's (distance as in thresholds); further, with output drift, rolls back. None: it "
        "never does, for a new version may well answer differently.",
    )


class Drift(Section):
    """Drift of one endpoint, looked at once a window. The scheduled flow judges each window once."""

    reference: DriftReference = Field(
        default_factory=DriftReference, description="What a window is compared with."
    )
    window_s: float = Field(
        default=86_400,
        ge=60,
        description="Length of a window; windows are aligned to its multiples (a day: midnight UTC).",
    )
    min_rows: int = Field(
        default=1000,
        ge=1000,
        description="Fewer rows are INCONCLUSIVE: distances are large on small samples without any drift.",
    )
    sample_rows: int = Field(
        default=20_000,
        ge=1000,
        le=200_000,
        description="Most requests of a window or reference that are compared; drawn while scanning.",
    )
    columns: tuple[str, ...] = Field(
        default=(), description="Input columns that are compared; empty: all that the reference has."
    )
    ignore: tuple[str, ...] = Field(default=(), description="Input columns that are not compared.")
    slices: tuple[str, ...] = Field(
        default=(), description="Columns whose frequent values are compared apart as well."
    )
    slices_max: int = Field(default=8, ge=1, le=50, description="Most values of a slicing column.")
    thresholds: DriftThresholds = Field(default_factory=DriftThresholds, description="Effects that matter.")
    budgets: DriftBudgets = Field(default_factory=DriftBudgets, description="Data quality.")
    alpha: Probability = Field(
        default=0.01, description="False-discovery rate of a window, over all columns and slices."
    )
    k: int = Field(default=2, ge=1, description="A column alarms when it is flagged in k ...")
    m: int = Field(default=3, ge=1, le=50, description="... of its last m windows, the newest among them.")
    retrain_again_s: float = Field(
        default=604_800, ge=0, description="Retraining is not asked for again sooner than this."
    )
    features_tag: str = Field(
        default="features",
        description="Tag of a registered version that names its feature code: only where the last promotion "
        "changed it can rolling back mend broken inputs.",
    )
    actions: bool = Field(
        default=True,
        description="Off: everything is computed, logged and shown, and alerts go out and say what would "
        "have been done; ramps are neither held nor rolled back and no retraining is asked for.",
    )

    @model_validator(mode="after")
    def _k_of_m(self) -> Drift:
        if self.k > self.m:
            raise ValueError("drift.k must not exceed drift.m")
        if self.sample_rows < self.min_rows:
            raise ValueError("drift.sample_rows must be at least drift.min_rows")
        return self
