"""Made-up traffic for the tests of this room: requests, users, and looks built from counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evals.looks import LookStatistics, UnitGroup

COLUMNS = ("time", "user", "share", "candidate", "failed", "service_ms", "total_ms")


def requests(rows: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """An observation frame; what a row leaves out is a fast, good champion request at 5%."""
    usual = {
        "time": 0.0,
        "user": "u",
        "share": 0.05,
        "candidate": False,
        "failed": False,
        "service_ms": 1.0,
        "total_ms": 2.0,
    }
    return pd.DataFrame([{**usual, **row} for row in rows], columns=list(COLUMNS))


def binary(good: int, bad: int) -> tuple[int, ...]:
    """Counts of 0/1 units by level."""
    return (good, *(0 for _ in range(19)), bad)


def group(
    pi: float,
    candidate: Mapping[str, tuple[int, int]],
    champion: Mapping[str, tuple[int, int]],
    *,
    entered: tuple[int, int] | None = None,
) -> UnitGroup:
    """A group from (good, bad) per metric; entered as many as were closed unless said."""
    ours = {name: binary(*pair) for name, pair in candidate.items()}
    theirs = {name: binary(*pair) for name, pair in champion.items()}
    if entered is None:
        entered = sum(candidate.get("errors", (0, 0))), sum(champion.get("errors", (0, 0)))
    return UnitGroup(pi, *entered, ours, theirs)


def drawn_look(
    rng: np.random.Generator,
    *,
    pi: float,
    units: int,
    candidate: Mapping[str, float],
    champion: Mapping[str, float],
) -> LookStatistics:
    """One look of `units` units with the given rates by metric; arms are drawn with pi."""
    ours = int(rng.binomial(units, pi))

    def arm(size: int, rates: Mapping[str, float]) -> dict[str, tuple[int, int]]:
        bad = {name: int(rng.binomial(size, rate)) for name, rate in rates.items()}
        return {name: (size - number, number) for name, number in bad.items()}

    made = group(pi, arm(ours, candidate), arm(units - ours, champion))
    return LookStatistics((made,), ours, units - ours)
