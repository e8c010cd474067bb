"""The policy's part about labels: where the truth comes from, later, and how an answer is scored by it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section


class Labels(Section):
    """The truth that arrives after the answer. It is joined to captured requests by the gateway's id.

    A score is in [0, 1], 1 is perfect. It feeds `watch.quality`, the canary, and what drift knows of
    performance.
    """

    path: str | None = Field(
        default=None,
        description="Parquet or CSV that the scheduled flow reads: a file, or a pattern (labels/*.parquet); "
        "a relative one is meant from the policy's folder. None: labels come by `interlock labels` only.",
    )
    table: str | None = Field(
        default=None, description="Instead of `path`: a table (or view) of the database `database_env`."
    )
    database_env: str | None = Field(
        default=None, description="Environment variable with the SQLAlchemy URL of the database of `table`."
    )
    request_id: str = Field(default="request_id", description="Column with the gateway's x-request-id.")
    label: str = Field(default="label", description="Column with the truth.")
    time: str | None = Field(
        default=None, description="Column that says when the truth was known: seconds since the epoch or ISO."
    )
    row: str | None = Field(
        default=None,
        description="Column that says which row of the request is meant, from 0; without it only requests of "
        "one row can be labelled.",
    )
    prediction: str = Field(
        default="prediction",
        description="What of the answer is scored: `prediction`, or `prediction.PART` where it has parts.",
    )
    metric: Literal["correct", "brier", "absolute"] = Field(
        default="correct",
        description="correct: 1 where the answer is the label (probabilities: on its side of `threshold`); "
        "brier: 1 - (probability - label)^2; absolute: 1 - |answer - label| / scale, at least 0.",
    )
    threshold: float = Field(
        default=0.5, ge=0, le=1, description="correct: a probability from here on means label 1."
    )
    scale: float | None = Field(
        default=None, gt=0, description="absolute: an error of this size or more scores 0."
    )
    min_rows: int = Field(
        default=200,
        ge=30,
        description="With fewer labelled requests in a drift window its performance counts as unknown.",
    )
    bucket_s: float = Field(
        default=3600, ge=60, description="Length of the intervals of true performance over time."
    )

    @model_validator(mode="after")
    def _complete(self) -> Labels:
        if (self.metric == "absolute") != (self.scale is not None):
            raise ValueError("labels.scale belongs to metric: absolute, which cannot do without it")
        if self.path is not None and self.table is not None:
            raise ValueError("labels.path and labels.table exclude each other")
        if (self.table is None) != (self.database_env is None):
            raise ValueError("labels.table and labels.database_env belong together")
        return self
