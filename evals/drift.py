"""Whether a window of live rows differs from its reference: columns, answers, and data quality.

A check is flagged when its effect is over its threshold and it is significant after
Benjamini-Hochberg over all of the window's questions. Whether that alarms is for
`drift_decision` to say, over several windows.

Rows of one visitor or of one hour resemble each other, which makes any p-value too small: the
threshold on the effect and the k of m windows are what stands against that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.drift import Drift
from evals.drift_measures import (
    COLUMN_ROWS_MIN,
    METHOD_WORDS,
    Frame,
    as_categories,
    as_numbers,
    distances,
    evidently_page,
    excess_p_value,
    is_output,
    kinds_of,
    unfit_numbers,
)

IDENTIFIER_SHARE = 0.5
"""A text column with more distinct values than this share of the rows names rows; it has no distribution."""


class Question(StrEnum):
    """What a check asks. SCHEMA, REFUSED and NULLS mean broken, the others mean changed."""

    INPUT = "input"
    OUTPUT = "output"
    RANGE = "out of range"
    CATEGORIES = "new categories"
    NULLS = "nulls"
    SCHEMA = "schema"
    REFUSED = "refused"
    VERSIONS = "new against old version"


BROKEN = frozenset({Question.SCHEMA, Question.REFUSED, Question.NULLS})
INPUTS_CHANGED = frozenset({Question.INPUT, Question.RANGE, Question.CATEGORIES})


@dataclass(frozen=True, slots=True)
class Check:
    """One question about one column of one slice, with its numbers.

    `effect` and `threshold` are in the unit of `method` (a distance, or a share of rows);
    `p_value` is None where the answer is certain. `flagged`: over the threshold and significant.
    """

    question: Question
    column: str
    method: str
    effect: float
    threshold: float
    rows: int
    p_value: float | None = None
    part: str = ""
    flagged: bool = False

    @property
    def key(self) -> str:
        """What this check is called over many windows."""
        return "/".join(filter(None, (self.question.value, self.column, self.part)))

    @property
    def words(self) -> str:
        """The finding in one line."""
        where = f" where {self.part}" if self.part else ""
        p = "" if self.p_value is None else f", p = {self.p_value:.1g}" if self.p_value else ", p < 1e-300"
        return (
            f"{self.question} {self.column}{where}: {self.method} {self.effect:.3g} "
            f"(threshold {self.threshold:.3g}{p})"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Compared:
    """Everything that was asked of one window, and what could not be asked."""

    checks: tuple[Check, ...]
    rows: int
    reference_rows: int
    notes: tuple[str, ...] = ()

    @property
    def flagged(self) -> tuple[Check, ...]:
        """The checks whose effect is large and significant."""
        return tuple(check for check in self.checks if check.flagged)


def compare(
    policy: Drift,
    reference: Frame,
    current: Frame,
    *,
    refused: int = 0,
    requests: int = 0,
    versions: tuple[Frame, Frame] | None = None,
) -> Compared:
    """Ask everything of one window.

    `reference` and `current` are samples with the same columns; columns that begin with
    `PREDICTION` are answers. `refused` of `requests` were answered 400, 415 or 422 (of all, not of
    the sample). `versions` are rows that the old and the new version answered at the same time. Needs
    at least `policy.min_rows` rows on both sides: callers ask `enough` first.
    """
    columns, notes = compared_columns(policy, reference)
    checks: list[Check] = [_refused(policy, refused, requests)] if requests else []
    if not len(current):
        notes.append("no answered rows to compare")
        return Compared(decide_flags(checks, policy.alpha), 0, len(reference), tuple(notes))
    broken, reference, current = _fit(policy, columns, reference, current)
    checks += broken
    outputs = _outputs(reference, current)
    if not outputs:
        notes.append("answers are not compared: the reference or the window has none")
    for part, left, right in _parts(policy, reference, current, notes):
        inside = {name: kind for name, kind in columns.items() if name != part.partition("=")[0]}
        checks += _differences(policy, inside, left, right, part)
        checks += _distances(policy, inside, left, right, Question.INPUT, part)
        checks += _distances(policy, kinds_of(left, outputs), left, right, Question.OUTPUT, part)
    if versions is not None and policy.budgets.outputs is not None:
        _, old, new = _fit(policy, {}, *versions)
        kinds = kinds_of(old, _outputs(old, new))
        checks += _distances(policy, kinds, old, new, Question.VERSIONS, "")
    extra = [name for name in current.columns if name not in reference.columns and not is_output(name)]
    if extra:
        notes.append(f"columns that the reference lacks: {', '.join(sorted(extra)[:10])}")
    return Compared(decide_flags(checks, policy.alpha), len(current), len(reference), tuple(notes))


def enough(policy: Drift, reference_rows: int, rows: int) -> str:
    """Why a window cannot be judged; "" where it can."""
    if rows < policy.min_rows:
        return f"{rows} rows in the window, drift.min_rows wants {policy.min_rows}"
    if reference_rows < policy.min_rows:
        return f"{reference_rows} rows in the reference, drift.min_rows wants {policy.min_rows}"
    return ""


def compared_columns(policy: Drift, reference: Frame) -> tuple[dict[str, bool], list[str]]:
    """Input columns to compare, each with whether it is numeric; and notes on those left out."""
    wanted = [str(name) for name in policy.columns or reference.columns if not is_output(str(name))]
    notes = [f"the reference has no column {name}" for name in wanted if name not in reference.columns]
    present = [name for name in wanted if name in reference.columns and name not in policy.ignore]
    kinds = kinds_of(reference, present)
    names = [
        name
        for name, numeric in kinds.items()
        if not numeric and int(reference[name].nunique()) > IDENTIFIER_SHARE * len(reference)
    ]
    notes += [f"{name} names rows (nearly every value is distinct): not compared" for name in names]
    return {name: numeric for name, numeric in kinds.items() if name not in names}, notes


def benjamini_hochberg(p_values: Sequence[float], alpha: float) -> NDArray[np.bool_]:
    """Which p-values are significant at false-discovery rate `alpha` (Benjamini and Hochberg 1995).

    The largest rank i with p(i) <= alpha i / n, and everything below it.
    """
    values = np.asarray(p_values, dtype=np.float64)
    found = np.zeros(values.size, dtype=np.bool_)
    if not values.size:
        return found
    order = np.argsort(values)
    passed = values[order] <= alpha * np.arange(1, values.size + 1) / values.size
    if passed.any():
        found[order[: int(np.flatnonzero(passed)[-1]) + 1]] = True
    return found


def decide_flags(checks: Iterable[Check], alpha: float) -> tuple[Check, ...]:
    """The checks with `flagged` set: effect over its threshold, and significant among all of them."""
    listed = list(checks)
    tested = [index for index, check in enumerate(listed) if check.p_value is not None]
    significant = set(range(len(listed))) - set(tested)
    accepted = benjamini_hochberg([float(listed[index].p_value or 0.0) for index in tested], alpha)
    significant |= {index for index, yes in zip(tested, accepted, strict=True) if yes}
    return tuple(
        replace(check, flagged=index in significant and check.effect > check.threshold)
        for index, check in enumerate(listed)
    )


def report_page(policy: Drift, reference: Frame, current: Frame) -> str:
    """Evidently's HTML page on the two samples, with the policy's thresholds."""
    columns, _ = compared_columns(policy, reference)
    _, reference, current = _fit(policy, columns, reference, current)
    kinds = columns | kinds_of(reference, _outputs(reference, current))
    thresholds = {name: _threshold(policy, name, numeric) for name, numeric in kinds.items()}
    return evidently_page(kinds, thresholds, reference, current)


def _refused(policy: Drift, refused: int, requests: int) -> Check:
    """Requests that the version could not read: what a broken schema looks like behind a strict replica."""
    budget = policy.budgets.refused
    p_value = excess_p_value(refused, requests, 0, requests, budget)
    return Check(
        Question.REFUSED, "requests", "share of requests", refused / requests, budget, requests, p_value
    )


def _fit(
    policy: Drift, columns: dict[str, bool], reference: Frame, current: Frame
) -> tuple[list[Check], Frame, Frame]:
    """Both sides with the reference's columns in one type each, and a schema check for what did not fit."""
    import pandas as pd

    checks: list[Check] = []
    sides: list[Frame] = [reference.copy(), current.copy()]
    outputs = kinds_of(reference, _outputs(reference, current))
    for name, numeric in (columns | outputs).items():
        if name not in current.columns:
            checks.append(
                Check(Question.SCHEMA, name, "share of rows without the column", 1.0, 0.0, len(current))
            )
            sides[1][name] = pd.Series(np.nan, index=current.index, dtype="float64" if numeric else "object")
            continue
        if numeric and (unfit := unfit_numbers(current[name])):
            budget, total = policy.budgets.nulls, len(current)
            p_value = excess_p_value(unfit, total, 0, total, budget)
            checks.append(
                Check(
                    Question.SCHEMA, name, "share of rows not numeric", unfit / total, budget, total, p_value
                )
            )
        for side in sides:
            side[name] = as_numbers(side[name]) if numeric else as_categories(side[name])
    return checks, sides[0], sides[1]


def _parts(
    policy: Drift, reference: Frame, current: Frame, notes: list[str]
) -> list[tuple[str, Frame, Frame]]:
    """The whole window first, then every frequent value of the slicing columns, on both sides."""
    parts = [("", reference, current)]
    for name in policy.slices:
        if name not in reference.columns or name not in current.columns:
            notes.append(f"no slices by {name}: the reference or the window lacks it")
            continue
        texts = reference[name].astype(str)
        small: list[str] = []
        for value in current[name].astype(str).value_counts().index[: policy.slices_max]:
            left, right = reference[texts == value], current[current[name].astype(str) == value]
            if min(len(left), len(right)) < policy.min_rows:
                small.append(str(value))
            else:
                parts.append((f"{name}={value}", left, right))
        if small:
            notes.append(f"too few rows for slices of {name}: {', '.join(small)}")
    return parts


def _differences(
    policy: Drift, columns: Mapping[str, bool], reference: Frame, current: Frame, part: str
) -> list[Check]:
    """Missing values, values out of range, and new categories, in excess of the reference's."""
    checks: list[Check] = []

    def add(question: Question, name: str, bad: Any, base: Any, budget: float) -> None:
        count, total, base_count, base_total = int(bad.sum()), len(bad), int(base.sum()), len(base)
        if not total or not base_total:
            return
        effect = count / total - base_count / base_total
        p_value = excess_p_value(count, total, base_count, base_total, budget)
        checks.append(Check(question, name, "excess share", effect, budget, total, p_value, part))

    for name, numeric in columns.items():
        left, right = reference[name], current[name]
        add(Question.NULLS, name, right.isna(), left.isna(), policy.budgets.nulls)
        known, seen = left.dropna(), right.dropna()
        if len(known) < COLUMN_ROWS_MIN:
            continue
        if numeric:
            low, high = float(known.min()), float(known.max())
            outside, base = (seen < low) | (seen > high), (known < low) | (known > high)
            add(Question.RANGE, name, outside, base, policy.budgets.out_of_range)
        else:
            new = ~seen.isin(known.unique())
            add(Question.CATEGORIES, name, new, known.isna(), policy.budgets.new_categories)
    return checks


def _distances(
    policy: Drift,
    kinds: Mapping[str, bool],
    reference: Frame,
    current: Frame,
    question: Question,
    part: str,
) -> list[Check]:
    return [
        Check(
            question,
            name,
            METHOD_WORDS[kinds[name]],
            found.effect,
            _threshold(policy, name, kinds[name], question),
            found.rows,
            found.p_value,
            part,
        )
        for name, found in distances(kinds, reference, current).items()
    ]


def _threshold(policy: Drift, name: str, numeric: bool, question: Question | None = None) -> float:
    if question is Question.VERSIONS and policy.budgets.outputs is not None:
        return policy.budgets.outputs
    if name in policy.thresholds.columns:
        return policy.thresholds.columns[name]
    if is_output(name):
        return policy.thresholds.prediction
    return policy.thresholds.numeric if numeric else policy.thresholds.categorical


def _outputs(reference: Frame, current: Frame) -> list[str]:
    return [str(name) for name in reference.columns if is_output(str(name)) and name in current.columns]
