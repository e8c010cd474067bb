"""Rows that are judged apart: which ones, and which are too few."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.evaluation import Evaluation, Metric, Slice
from evals.contest import Contest, Scores, compare
from evals.metrics import MetricError
from evals.verdict import Finding, Outcome

if TYPE_CHECKING:
    import pandas as pd

_QUARTILES = 4
_NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class SliceRows:
    """One slice specification with the rows of each of its slices, large ones apart from small ones.

    `problem` is set, and nothing else, where the policy asks for what the rows do not have.
    """

    spec: Slice
    metric: Metric | None = None
    large: tuple[tuple[str, NDArray[np.int64]], ...] = ()
    small: tuple[tuple[str, NDArray[np.int64]], ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """What its findings begin with."""
        return f"{self.spec.metric} where {self.spec.column}"


def cut(policy: Evaluation, scores: Scores) -> list[SliceRows]:
    """Every slice of the policy; none without a champion to compare with."""
    if scores.champion is None:
        return [part for spec in policy.slices if (part := _rows_of(spec, policy, scores)).problem]
    return [_rows_of(spec, policy, scores) for spec in policy.slices]


def judge(part: SliceRows, policy: Evaluation, scores: Scores, family: int) -> Iterator[Finding]:
    """The findings of one specification. What is too small or undecided blocks only where it is required."""
    spec, metric = part.spec, part.metric
    if metric is None:
        yield Finding(part.name, Outcome.ERROR, part.problem)
        return
    if part.small:
        few = ", ".join(name for name, _ in part.small[:_NAMED_MAX])
        few += ", ..." if len(part.small) > _NAMED_MAX else ""
        reason = f"{part.name} in {few}: under {spec.min_rows} rows, not judged. Next: hold out more of them"
        units = sum(int(rows.size) for _, rows in part.small)
        yield Finding(part.name, Outcome.INCONCLUSIVE, reason, units=units, blocks=spec.required)
    for value, rows in part.large:
        label = f"{part.name} = {value}"
        try:
            yield compare(
                Contest(spec.metric, scores, rows),
                metric,
                margin=spec.margin,
                confidence=policy.confidence,
                family=family,
                label=label,
                blocks=spec.required,
            )
        except MetricError as error:
            yield Finding(label, Outcome.ERROR, f"{label}: {error}", units=int(rows.size))


def group_rows(
    frame: pd.DataFrame, column: str, bins: tuple[float, ...] = ()
) -> dict[str, NDArray[np.int64]]:
    """Row numbers by slice: every value; numbers by `bins`, else by quartiles where they have more than 4.

    Edges e1 < e2 make the slices below e1, from e1 to below e2, and from e2 on. Raises ValueError for bins
    of what is no number.
    """
    import pandas as pd

    values: Any = pd.Series(np.asarray(frame[column]))
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if bins:
        if not numeric:
            raise ValueError(f"it has bins, but its values are {values.dtype}, not numbers")
        values = _binned(values.to_numpy(dtype=np.float64), bins)
    elif numeric and values.nunique() > _QUARTILES:
        values = np.asarray(pd.qcut(values, _QUARTILES, duplicates="drop"))
    text = np.array(["missing" if pd.isna(value) else str(value) for value in values], dtype=object)
    codes, names = pd.factorize(text, sort=True)
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}


def _binned(values: NDArray[np.float64], bins: tuple[float, ...]) -> NDArray[Any]:
    words = [f"under {bins[0]:g}"]
    words += [f"{low:g} to under {high:g}" for low, high in itertools.pairwise(bins)]
    words.append(f"{bins[-1]:g} or more")
    found = np.array(words, dtype=object)[np.digitize(values, bins)]
    found[np.isnan(values)] = None
    return found


def _rows_of(spec: Slice, policy: Evaluation, scores: Scores) -> SliceRows:
    asked = f"slice by {spec.column}: "
    metric = next((one for one in policy.metrics if one.name == spec.metric), None)
    if metric is None:
        named = ", ".join(one.name for one in policy.metrics)
        problem = f"{spec.metric} is not among evaluation.metrics ({named}). Next: add it there"
        return SliceRows(spec, problem=asked + problem)
    if scores.rows is None or spec.column not in scores.rows.columns:
        has = "none" if scores.rows is None else ", ".join(map(str, scores.rows.columns[:20]))
        problem = f"the held-out rows have no such column; they have {has}. Next: correct evaluation.slices"
        return SliceRows(spec, problem=asked + problem)
    try:
        groups = group_rows(scores.rows, spec.column, spec.bins)
    except ValueError as error:
        return SliceRows(spec, problem=f"{asked}{error}. Next: correct evaluation.slices")
    large = tuple((value, rows) for value, rows in groups.items() if rows.size >= spec.min_rows)
    small = tuple((value, rows) for value, rows in groups.items() if rows.size < spec.min_rows)
    return SliceRows(spec, metric, large, small)
