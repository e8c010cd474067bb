"""Distances and significance of columns: Evidently's numbers, and the tests that it lacks.

Distances are Evidently's, from its typed results (never its label texts): the Wasserstein distance
in standard deviations for numbers, the Jensen-Shannon distance for categories. For numbers its
Kolmogorov-Smirnov p-value is the significance. For categories it is our own: Evidently's
chi-square takes the reference as exact and flags 97% of unchanged columns with 50 categories at
1,000 rows.
"""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

Frame = Any
"""A pandas frame (pandas is imported late, and has no complete types)."""

PREDICTION = "prediction"
"""Column of a version's answer; `prediction.PART` where an answer has several parts."""

CATEGORIES_MAX = 50
"""Rarer categories are compared as one: many small ones are mostly noise."""

COLUMN_ROWS_MIN = 100
"""A column with fewer values on either side has no distance; its missing values are counted all the same."""

METHOD_WORDS = {True: "Wasserstein distance", False: "Jensen-Shannon distance"}
_METHOD = {True: "wasserstein", False: "jensenshannon"}
_OTHER = "(other)"


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a column is from its reference, and how likely that is without any change."""

    effect: float
    p_value: float
    rows: int


def is_output(column: str) -> bool:
    """Whether a column holds answers of the version."""
    return column == PREDICTION or column.startswith(f"{PREDICTION}.")


def kinds_of(frame: Frame, names: Iterable[str]) -> dict[str, bool]:
    """Whether each column is numeric. Flags and two-valued numbers are categories."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return {
        name: bool(
            is_numeric_dtype(frame[name]) and not is_bool_dtype(frame[name]) and frame[name].nunique() > 2
        )
        for name in names
    }


def as_numbers(column: Frame) -> Frame:
    """A column as floats; what is no finite number is missing."""
    import pandas as pd

    values: Frame = pd.to_numeric(column, errors="coerce")
    values = values.astype("float64")
    return values.where(np.isfinite(values))


def unfit_numbers(column: Frame) -> int:
    """How many values are there and are no number."""
    import pandas as pd

    values: Frame = pd.to_numeric(column, errors="coerce")
    return int((values.isna() & column.notna() & (column.astype(str) != "")).sum())


def as_categories(column: Frame) -> Frame:
    """A column as texts, the same for 1 and 1.0: a missing value elsewhere turns whole numbers to floats."""

    def text(value: Any) -> str:
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    values: Frame = column.astype("object")
    return values.where(values.isna() | (values == ""), values.map(text)).replace("", None)


def distances(kinds: Mapping[str, bool], reference: Frame, current: Frame) -> dict[str, Distance]:
    """Distance and significance of each column that has enough values on both sides."""
    kinds = comparable(kinds, reference, current)
    left, right = _lumped(reference, current, kinds)
    effects = _evidently_values(kinds, left, right, _METHOD)
    numeric = {name: True for name, is_numeric in kinds.items() if is_numeric}
    p_values = _evidently_values(numeric, left, right, {True: "ks"})
    p_values |= {
        name: category_p_value(left[name].dropna(), right[name].dropna())
        for name in kinds
        if name not in numeric
    }
    return {name: Distance(effects[name], p_values[name], int(right[name].count())) for name in kinds}


def comparable(kinds: Mapping[str, bool], reference: Frame, current: Frame) -> dict[str, bool]:
    """The columns with enough values on both sides to have a distance."""
    return {
        name: numeric
        for name, numeric in kinds.items()
        if min(int(reference[name].count()), int(current[name].count())) >= COLUMN_ROWS_MIN
    }


def excess_p_value(count: int, total: int, base: int, base_total: int, budget: float) -> float:
    """One-sided p-value of 'the share exceeds the base share by more than `budget`' (normal, unpooled).

    Shares get the Agresti-Coull correction, so that 0 of n has a variance as well.
    """
    from scipy.stats import norm

    share, base_share = (count + 1) / (total + 2), (base + 1) / (base_total + 2)
    spread = math.sqrt(share * (1 - share) / (total + 2) + base_share * (1 - base_share) / (base_total + 2))
    return float(norm.sf((share - base_share - budget) / spread))


def category_p_value(reference: Frame, current: Frame) -> float:
    """Two-sample chi-square p-value of two columns of categories; thin cells are merged first."""
    from scipy.stats import chi2_contingency

    left, right = reference.value_counts(), current.value_counts()
    names = sorted(set(left.index) | set(right.index), key=str)
    table = np.array([[int(side.get(name, 0)) for name in names] for side in (left, right)], dtype=np.float64)
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    thin = expected < 5
    if thin.any():
        table = np.column_stack([table[:, ~thin], table[:, thin].sum(axis=1)])
        table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    result: Any = chi2_contingency(table, correction=False)
    return float(result.pvalue)


def evidently_page(
    kinds: Mapping[str, bool], thresholds: Mapping[str, float], reference: Frame, current: Frame
) -> str:
    """Evidently's own page on the two samples: distributions, distances, summary. For people."""
    kinds = comparable(kinds, reference, current)
    left, right = _lumped(reference, current, kinds)
    with _evidently() as it:
        metrics = [
            it.ValueDrift(column=name, method=_METHOD[numeric], threshold=thresholds[name])
            for name, numeric in kinds.items()
        ]
        definition = _definition(it, kinds)
        snapshot = it.Report([*metrics, it.DataSummaryPreset()]).run(
            it.Dataset.from_pandas(right, definition), it.Dataset.from_pandas(left, definition)
        )
        return str(snapshot.get_html_str(as_iframe=False))


@contextmanager
def _evidently() -> Generator[Any]:
    """Evidently's names, imported at the first use (6 s), without the warnings that its code raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.metrics import ValueDrift
        from evidently.presets import DataSummaryPreset

        yield types.SimpleNamespace(
            DataDefinition=DataDefinition,
            Dataset=Dataset,
            Report=Report,
            ValueDrift=ValueDrift,
            DataSummaryPreset=DataSummaryPreset,
        )


def _definition(it: Any, kinds: Mapping[str, bool]) -> Any:
    return it.DataDefinition(
        numerical_columns=[name for name, numeric in kinds.items() if numeric],
        categorical_columns=[name for name, numeric in kinds.items() if not numeric],
    )


def _lumped(reference: Frame, current: Frame, kinds: Mapping[str, bool]) -> tuple[Frame, Frame]:
    """The compared columns alone, with rare categories as one.

    Which are rare is decided by the counts of both sides together: given those, how they fall on the two
    sides is chance alone where nothing drifted. Chosen by one side's shares, the test would find the
    choice itself (tried: 59 of 60 unchanged windows were flagged).
    """
    import pandas as pd

    left: Frame = {}
    right: Frame = {}
    for name, numeric in kinds.items():
        if numeric:
            left[name], right[name] = reference[name].astype("float64"), current[name].astype("float64")
            continue
        texts = [side[name] for side in (reference, current)]
        counts = texts[0].value_counts().add(texts[1].value_counts(), fill_value=0)
        kept = list(counts.nlargest(CATEGORIES_MAX).index)
        left[name], right[name] = (side.where(side.isna() | side.isin(kept), _OTHER) for side in texts)
    return pd.DataFrame(left), pd.DataFrame(right)


def _evidently_values(
    kinds: Mapping[str, bool], reference: Frame, current: Frame, methods: Mapping[bool, str]
) -> dict[str, float]:
    """Evidently's value of one method for each column, read from its typed results."""
    if not kinds:
        return {}
    with _evidently() as it:
        metrics = [it.ValueDrift(column=name, method=methods[numeric]) for name, numeric in kinds.items()]
        definition = _definition(it, kinds)
        snapshot = it.Report(metrics).run(
            it.Dataset.from_pandas(current, definition), it.Dataset.from_pandas(reference, definition)
        )
        by_column = {
            result.metric_value_location.metric.params["column"]: float(result.value)
            for result in snapshot.metric_results.values()
        }
    return {name: by_column[name] for name in kinds}
