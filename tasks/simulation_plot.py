"""A simulation as a figure: how releases ended, and how many requests a bad version answered."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from evals.verdict import Outcome
from serving.errors import SetupError
from tasks.plots import BOUND, CANDIDATE, INK, plain_axes, svg
from tasks.simulating import Simulated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".html", ".png", ".svg")
_PARTS = ((Outcome.PASS, "promoted", BOUND), (Outcome.FAIL, "rolled back", CANDIDATE))


def write_plot(simulated: Simulated, path: Path) -> None:
    """Write the figure as PNG, SVG, or a page with its numbers; the file's ending says which.

    Raises `SetupError` where the file cannot be written.
    """
    try:
        _write_plot(simulated, path)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}. Next: another --plot") from error


def _write_plot(simulated: Simulated, path: Path) -> None:
    figure = draw(simulated)
    if path.suffix != ".html":
        figure.savefig(path, dpi=150)
        return
    title = html.escape(f"What the policy of {simulated.endpoint} does")
    lines = [*(f"plan: {step}" for step in simulated.plan), *simulated.notes]
    listed = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<body style="font-family: sans-serif; max-width: 60rem; margin: 2rem auto"><h1>{title}</h1>'
        f"<p>{html.escape(simulated.source)}; seed {simulated.seed}.</p>{svg(figure)}<ul>{listed}</ul>"
        "</body></html>\n"
    )


def draw(simulated: Simulated) -> Figure:
    """Left the shares of outcomes, right the exposed requests until rollback, cumulated."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{row.name} ({row.plays})" for row in simulated.rows]
    begun = np.zeros(len(names))
    for outcome, label, color in _PARTS:
        shares = np.array(
            [sum(one.outcome is outcome for one in plays) / max(len(plays), 1) for plays in simulated.plays]
        )
        left.barh(names, shares, left=begun, color=color, label=label)
        begun += shares
    left.barh(names, 1 - begun, left=begun, color="#c9d0d6", label="undecided or stopped")
    left.invert_yaxis()
    left.set_xlabel("share of releases")
    left.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    for row, plays in zip(simulated.rows[1:], simulated.plays[1:], strict=True):
        exposed = np.sort([max(one.exposed, 1) for one in plays if one.outcome is Outcome.FAIL])
        if exposed.size:
            right.step(exposed, np.arange(1, exposed.size + 1) / len(plays), where="post", label=row.name)
    right.set_xscale("log")
    right.set_ylim(0, 1.02)
    right.set_xlabel("requests that the bad version had answered")
    right.set_ylabel("share rolled back by then", color=INK)
    if right.lines:
        right.legend(frameon=False, fontsize=8, loc="best")
    return plain_axes(figure)
