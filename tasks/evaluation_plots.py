"""Plots of an evaluation: intervals against their margins, calibration or errors, latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.evaluation import Evaluation
from evals.contest import Scores
from evals.metrics import CALIBRATION_BINS, MetricError, Predictions, calibration_gaps, probabilities
from evals.verdict import Finding, Outcome
from tasks.plots import BOUND, CANDIDATE, CHAMPION, INK, plain_axes, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_COMPARED_MAX = 40
_REACH_MAX = 3.0
"""Margins that are drawn to either side."""

_COLORS = {
    Outcome.FAIL: CANDIDATE,
    Outcome.ERROR: CANDIDATE,
    Outcome.INCONCLUSIVE: "#8a6100",
    Outcome.PASS: BOUND,
}
"""The gravest first."""

_INTERVALS_TEXT = (
    "Each line is the interval of how much worse (right) or better (left) the candidate is than the "
    "champion, in units of its own margin; without a margin, of the interval's reach. Green passes: all "
    "of it is left of the margin. An arrow lies beyond three margins."
)
_CALIBRATION_TEXT = (
    "How often the likeliest class was right, by the confidence in it. On the diagonal confidence can be "
    "taken at its word; the size of a dot is its share of the rows."
)
_ERRORS_TEXT = "Share of rows whose prediction is at most this far from the truth."
_LATENCY_TEXT = "Share of single calls that took at most this long, model only. Dotted: the policy's budgets."


def plots_of(
    policy: Evaluation, scores: Scores, findings: Sequence[Finding]
) -> Iterator[tuple[str, str, str]]:
    """Title, SVG and text of every plot that these scores have."""
    compared = [finding for finding in findings if finding.low is not None and finding.bound is not None]
    if compared:
        # the gravest first: what does not fit must not be what failed
        compared.sort(key=lambda one: list(_COLORS).index(one.outcome))
        yield "Differences against their margins", svg(_intervals(compared[:_COMPARED_MAX])), _INTERVALS_TEXT
    versions = [("candidate", scores.candidate, CANDIDATE), ("champion", scores.champion, CHAMPION)]
    shown = [(name, made, color) for name, made, color in versions if made is not None]
    if scores.candidate.probability is not None:
        yield "Calibration", svg(_calibration(scores, shown)), _CALIBRATION_TEXT
    if policy.task == "regression":
        yield "Errors", svg(_errors(scores, shown)), _ERRORS_TEXT
    calls = [("candidate", scores.candidate_ms, CANDIDATE), ("champion", scores.champion_ms, CHAMPION)]
    timed = [(name, np.asarray(taken, np.float64), color) for name, taken, color in calls if np.size(taken)]
    if timed:
        yield "Latency of one call", svg(_latency(policy, timed)), _LATENCY_TEXT


def _intervals(findings: Sequence[Finding]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.9 + 0.34 * len(findings)), layout="constrained")
    axes = figure.subplots()
    reach = 1.6
    for place, finding in enumerate(findings):
        low, high, bound = finding.low, finding.high, finding.bound
        assert low is not None and high is not None and bound is not None  # noqa: PT018 (chosen by the caller)
        sign = -1.0 if np.signbit(bound) else 1.0
        scale = abs(bound) or max(abs(low), abs(high)) or 1.0
        ends = sorted((sign * low / scale, sign * high / scale))
        color = _COLORS[finding.outcome]
        axes.plot(
            np.clip(ends, -_REACH_MAX, _REACH_MAX),
            [place, place],
            color=color,
            linewidth=2.4,
            solid_capstyle="butt",
        )
        if finding.candidate is not None and finding.champion is not None:
            middle = sign * (finding.candidate - finding.champion) / scale
            mark = "o" if abs(middle) <= _REACH_MAX else ">" if middle > 0 else "<"
            axes.plot([np.clip(middle, -_REACH_MAX, _REACH_MAX)], [place], mark, color=color, markersize=5)
        margin = 1.0 if bound else 0.0
        axes.plot([margin, margin], [place - 0.38, place + 0.38], color=INK, linewidth=1.2)
        reach = max(reach, *np.abs(np.clip(ends, -_REACH_MAX, _REACH_MAX)))
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(findings)), [finding.metric for finding in findings])
    axes.set_ylim(len(findings) - 0.4, -0.6)
    axes.set_xlim(-reach * 1.05, reach * 1.05)
    axes.set_xlabel("better  ←  difference in margins (bars: the margin)  →  worse")
    return plain_axes(figure)


def _calibration(scores: Scores, versions: Sequence[tuple[str, Predictions, str]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    classes = np.unique(scores.labels)
    lowest = 1.0
    for name, predictions, color in versions:
        try:
            matrix = probabilities("calibration", predictions, classes)
        except MetricError:
            continue  # a champion that answers classes only has no confidence
        bins, gaps = calibration_gaps(scores.labels, matrix, classes)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        confidence = np.bincount(bins, weights=matrix.max(axis=1), minlength=CALIBRATION_BINS)
        gap = np.bincount(bins, weights=gaps, minlength=CALIBRATION_BINS)
        some = counts > 0
        said = confidence[some] / counts[some]
        right = said + gap[some] / counts[some]
        axes.plot(said, right, color=color, linewidth=1.2, label=name)
        axes.scatter(said, right, s=10 + 160 * counts[some] / counts.sum(), color=color, alpha=0.7)
        lowest = min(lowest, float(said.min()), float(right.min()))
    axes.set_xlim(max(0.0, lowest - 0.05), 1.02)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    axes.set_xlabel("confidence in the likeliest class")
    axes.set_ylabel("share of right answers")
    axes.legend(frameon=False, loc="upper left")
    return plain_axes(figure)


def _errors(scores: Scores, versions: Sequence[tuple[str, Predictions, str]]) -> Figure:
    labels = scores.labels.astype(np.float64)
    sides: list[tuple[str, NDArray[Any], str]] = []
    for name, made, color in versions:
        assert made.values is not None  # a regression's answers are numbers
        sides.append((name, np.abs(made.values - labels), color))
    return _shares(sides, "distance from the truth")


def _latency(policy: Evaluation, calls: Sequence[tuple[str, NDArray[np.float64], str]]) -> Figure:
    figure = _shares(calls, "milliseconds a call")
    axes = figure.axes[0]
    for name in ("p50", "p95", "p99"):
        limit = getattr(policy.latency_ms, name)
        if limit is not None:
            axes.axvline(limit, color=INK, linewidth=1, linestyle=":")
            axes.annotate(f" {name}", (limit, int(name[1:]) / 100), color=INK, fontsize=8)
    return figure


def _shares(sides: Sequence[tuple[str, NDArray[Any], str]], words: str) -> Figure:
    """Empirical distribution functions of at most 5,000 points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, values, color in sides:
        ordered = np.sort(values)
        chosen = np.unique(np.linspace(0, ordered.size - 1, min(ordered.size, 5000)).astype(int))
        axes.step(ordered[chosen], (chosen + 1) / ordered.size, color=color, where="post", label=name)
    axes.set_xlabel(words)
    axes.set_ylabel("share")
    axes.legend(frameon=False, loc="lower right")
    return plain_axes(figure)
