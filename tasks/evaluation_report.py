"""The evaluation for people: a page with the verdict and its plots, and Evidently's on data and metrics."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from configs.evaluation import Evaluation
from evals.evidently_pages import evaluation_page
from evals.verdict import Finding, Outcome, Verdict
from tasks.evaluation_plots import plots_of
from tasks.held_out import HeldOut
from tasks.plots import page

if TYPE_CHECKING:
    from evals.contest import Scores

_LOG = logging.getLogger("interlock.evaluation")
_GRAVEST = (Outcome.FAIL, Outcome.ERROR, Outcome.INCONCLUSIVE, Outcome.PASS)
PAGE, DATA_PAGE = "evaluation.html", "evaluation-data.html"
_MULTIPLICITY = (
    "A PASS needs every comparison, which needs no correction. A FAIL is judged at the confidence that all "
    "comparisons and slices share (Bonferroni), so that a candidate within all its margins is rejected by "
    "any of them with probability at most {risk:.1%}."
)


def verdict_page(
    policy: Evaluation,
    verdict: Verdict,
    held_out: HeldOut,
    scores: Scores | None,
    *,
    endpoint: str,
    version: str,
    champion: str,
    now: float,
    has_data_page: bool,
) -> str:
    """The verdict, the rows that it rests on, every finding, and plots. `now` in seconds since the epoch."""
    plots = list(plots_of(policy, scores, verdict.findings)) if scores is not None else []
    is_wide = {"Differences against their margins"}
    return page(
        "evaluation.html.j2",
        endpoint=endpoint,
        version=version,
        champion=champion,
        verdict=verdict,
        findings=sorted(verdict.findings, key=_gravity),
        when=_moment(now),
        facts=_facts(policy, held_out),
        multiplicity=_MULTIPLICITY.format(risk=(1 - policy.confidence) / 2),
        wide=[plot for plot in plots if plot[0] in is_wide],
        narrow=[plot for plot in plots if plot[0] not in is_wide],
        has_data_page=has_data_page,
    )


def data_page(policy: Evaluation, held_out: HeldOut, scores: Scores | None) -> str:
    """Evidently's page, "" where the versions were not scored or Evidently could not draw it."""
    if scores is None:
        return ""
    try:
        return evaluation_page(policy, held_out.rows, scores)
    except Exception:  # noqa: BLE001 (a page for people; the verdict stands without it)
        _LOG.warning("Evidently's page could not be drawn", exc_info=True)
        return ""


def _gravity(finding: Finding) -> int:
    """What decides first, what only informs last."""
    if finding.outcome is not Outcome.PASS and not finding.blocks:
        return len(_GRAVEST)
    return _GRAVEST.index(finding.outcome)


def _facts(policy: Evaluation, held_out: HeldOut) -> list[tuple[str, str]]:
    rows = f"{len(held_out.labels):,} scored"
    if held_out.sampled:
        rows += f", a seeded sample of {held_out.total:,} (evaluation.max_rows {policy.max_rows:,})"
    missing = held_out.all_labels.size - len(held_out.labels)
    if missing:
        rows += f"; {missing:,} without a label left out"
    written = _moment(held_out.modified_at) + " UTC" if held_out.modified_at is not None else "not known"
    return [
        ("data", held_out.source),
        ("rows", rows),
        ("written", written),
        ("digest", held_out.digest[:16]),
        ("label", f"{policy.label} ({policy.task})"),
    ]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
