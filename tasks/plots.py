"""Pages and plots of reports: one look for all of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, CANDIDATE, CHAMPION, BOUND = "#59636e", "#b3261e", "#1f5fa8", "#1a7f37"


def page(template: str, **values: Any) -> str:
    """A template of this folder as HTML; plots go in as SVG, so that the page is one file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number_words
    return environment.get_template(template).render(**values)


def plain_axes(figure: Figure) -> Figure:
    """The figure without frames, with a faint grid."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
        axes.grid(visible=True, color="#e8ebee", linewidth=0.6)
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    FigureCanvasSVG(figure).print_svg(text)
    return text.getvalue()[text.getvalue().index("<svg") :]


def number_words(value: Any) -> str:
    """A value for people: four significant digits, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
