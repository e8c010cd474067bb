"""The policy's part about how long records are kept."""

from __future__ import annotations

from pydantic import Field

from configs.section import Section

DAY_S = 86_400.0


class Retention(Section):
    """What is older is deleted by the scheduled flow `retention`, with a line in the trail.

    The journal's counts of every look, its verdicts and its trail are kept for ever: they name nobody, and a
    release can be decided again from them.
    """

    captures_s: float | None = Field(
        default=30 * DAY_S,
        ge=3600,
        description="Captured requests and their labels, in whole hours, and the cache's copies of training "
        "data and of answers to held-out rows (all endpoints share them: the longest time counts); null: for "
        "ever. The shadow's pages of differing answers go with the first of these and of the access log.",
    )
    access_log_s: float | None = Field(
        default=30 * DAY_S,
        ge=DAY_S,
        description="Lines of the gateway's access log. All endpoints share it: the longest time counts, and "
        "an open release keeps its own; null: for ever.",
    )
    logs_s: float | None = Field(
        default=14 * DAY_S,
        ge=3600,
        description="Logs of programs that nobody wrote to for this long; null: for ever. What is written to "
        "is cut at 50 MB either way.",
    )
    models_s: float | None = Field(
        default=14 * DAY_S,
        ge=DAY_S,
        description="Local copies of models and weights that no slot of any endpoint held or asked for this "
        "long. All endpoints share them: the longest time counts; null: for ever.",
    )
    reports_s: float | None = Field(
        default=365 * DAY_S,
        ge=DAY_S,
        description="Pages in MLflow: drift reports (the scores over time stay), and those of releases and "
        "evaluations; null: for ever.",
    )
