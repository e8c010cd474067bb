"""How e-values are written down: for JSON and plots (finite), and for people (short)."""

from __future__ import annotations

import math

_LARGEST = 1e12


def capped_e(log_e: float) -> float:
    """The e-value, at most 1e12: a number that JSON and plots can hold."""
    return math.exp(min(log_e, math.log(_LARGEST)))


def e_text(log_e: float) -> str:
    """The e-value in three digits."""
    return "over 1e12" if log_e > math.log(_LARGEST) else f"{math.exp(log_e):.3g}"


def lacking_text(eta: float | None, unit: str) -> str:
    """What a question still needs: 'about 240 more candidate units'."""
    if eta is None:
        return "which does not rise at the present rates"
    return f"about {math.ceil(eta)} more {unit}"
