"""Drift on the flights' own seasons, month by month; rewrites docs/drift-on-flights.md.

    python -m benchmarks.drift [--out docs/drift-on-flights.md]

A model learns from January to March and serves from April on. Every month is judged as Interlock judges a
window, and by Evidently's own defaults on the very same samples. Then each month is compared with itself
(its two random halves, where nothing changed) for false alarms; and the model is trained again on the three
months before each, to see what retraining is worth. Five minutes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from configs.drift import Drift
from evals.drift import compare
from evals.drift_decision import PastWindow, judge
from examples.flights.data import FEATURES, LABEL
from examples.flights.models import Fitted
from examples.flights.retrain import between, fit, labelled_flights, probabilities

TRAINED = ("2013-01-01", "2013-04-01")
MONTHS = range(4, 13)
SAMPLE_ROWS = 20_000
HALVES_ROWS = (1_000, 5_000)
MONTH_S = 30 * 86_400.0
COST = "\n## What a check costs"

_HEAD = """# Drift on the flights' own seasons

Written by `make drift-on-flights` (`benchmarks/drift`). The model of the demo's v2 learns from January to
March 2013 and serves from April on. Each month is one window of at most 20,000 sampled requests, with the
training data as the reference; an alarm needs 2 of the last 3 windows. Evidently's `DataDriftPreset` with
its own defaults saw the very same two samples.

| month | late | flagged | alarms | what follows (no labels) | Evidently: drifted | log loss | retrained |
| --- | --- | --- | --- | --- | --- | --- | --- |"""

_RETRAINING = """
"Retrained" is the log loss of the same recipe trained on the three months before. It is better in
{better} of {months} months, by {gain:.4f} on average over all. What retraining brings is measured by
labels, never by drift: a month may drift far and cost little.

## Months without real change

Each of the twelve months against itself: two random halves, where nothing changed.

| rows a side | months that we flag (columns) | months that Evidently flags (columns) |
| --- | --- | --- |"""

_TAIL = """
A flag is not an alarm yet: that takes two of three windows. Weather moves with the seasons by itself, so
against winter's data it alarms all summer; a reference of the same season (`drift.reference.kind: season`)
needs a year before, which this data set does not have.

`examples/flights/prefect.yaml` has the deployment that closes the loop: it subscribes to
`interlock.retrain.requested`, trains on the last 90 days and makes the new version the candidate."""


@dataclass(frozen=True, slots=True)
class Month:
    """One month as it was judged. Losses are log losses."""

    name: str
    late: float
    flagged: tuple[str, ...]
    alarms: tuple[str, ...]
    actions: str
    theirs: int
    compared: int
    loss: float
    retrained: float


def main() -> int:
    """Judge, compare, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("docs/drift-on-flights.md"))
    out: Path = parser.parse_args().out
    warnings.simplefilter("ignore")
    flights = labelled_flights()
    months = _seasons(flights)
    halves = [_halves(flights, rows) for rows in HALVES_ROWS]
    _, begin, cost = out.read_text().partition(COST)  # `make bench-drift` writes that part
    out.write_text(_page(months, halves) + begin + cost)
    print(out.read_text())
    return 0


def _policy() -> Drift:
    return Drift(window_s=MONTH_S, sample_rows=SAMPLE_ROWS, k=2, m=3)


def _seasons(flights: pd.DataFrame) -> list[Month]:
    model = fit(between(flights, *TRAINED))
    reference = _sample(_answered(model, between(flights, *TRAINED)), SAMPLE_ROWS, 0)
    past: list[PastWindow] = []
    months: list[Month] = []
    for month in MONTHS:
        rows = _month(flights, month)
        window = _sample(_answered(model, rows), SAMPLE_ROWS, month)
        ends_at = month * MONTH_S
        verdict = judge(
            _policy(),
            compare(_policy(), reference, window),
            past,
            ends_at=ends_at,
            version="1",
            reference="training",
        )
        flagged = tuple(sorted(check.key for check in verdict.flagged))
        actions = ", ".join(action.value for action in verdict.decision.actions)
        past.append(PastWindow(ends_at, "1", "training", frozenset(flagged), "retraining" in actions))
        start: Any = pd.Timestamp(2013, month, 1)
        fresh = fit(between(flights, start - pd.DateOffset(months=3), start))
        months.append(
            Month(
                start.strftime("%B"),
                float(rows[LABEL].mean()),
                flagged,
                tuple(sorted(check.key for check in verdict.alarms)),
                actions,
                *_evidently(reference, window),
                loss=_loss(model, rows),
                retrained=_loss(fresh, rows),
            )
        )
        print(months[-1], file=sys.stderr)
    return months


@dataclass(frozen=True, slots=True)
class Halves:
    """Months compared with themselves: windows and columns that were flagged, by whom."""

    rows: int
    windows: int
    ours: int
    ours_columns: int
    theirs: int
    theirs_columns: int


def _halves(flights: pd.DataFrame, size: int) -> Halves:
    ours = ours_columns = theirs = theirs_columns = 0
    for month in range(1, 13):
        rows = _month(flights, month)[list(FEATURES)].sample(2 * size, random_state=month)
        left, right = rows.iloc[:size].reset_index(drop=True), rows.iloc[size:].reset_index(drop=True)
        found = len(compare(_policy(), left, right).flagged)
        drifted, _ = _evidently(left, right)
        ours, ours_columns = ours + bool(found), ours_columns + found
        theirs, theirs_columns = theirs + bool(drifted), theirs_columns + drifted
    result = Halves(size, 12, ours, ours_columns, theirs, theirs_columns)
    print(result, file=sys.stderr)
    return result


def _evidently(reference: pd.DataFrame, current: pd.DataFrame) -> tuple[int, int]:
    """Columns that Evidently's preset calls drifted with its own defaults, and how many it looked at."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    texts = [name for name in reference.columns if reference[name].dtype == object]
    numbers = [name for name in reference.columns if name not in texts]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=texts)
    snapshot = Report([DataDriftPreset()]).run(
        Dataset.from_pandas(current, definition), Dataset.from_pandas(reference, definition)
    )
    counts: list[Any] = [result for result in snapshot.metric_results.values() if hasattr(result, "count")]
    return int(counts[0].count.value), len(reference.columns)


def _month(flights: pd.DataFrame, month: int) -> pd.DataFrame:
    start = pd.Timestamp(2013, month, 1)
    return between(flights, start, start + pd.DateOffset(months=1))


def _answered(model: Fitted, rows: pd.DataFrame) -> pd.DataFrame:
    return rows[list(FEATURES)].assign(prediction=probabilities(model, rows))


def _sample(rows: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    return rows.sample(min(count, len(rows)), random_state=seed).reset_index(drop=True)


def _loss(model: Fitted, rows: pd.DataFrame) -> float:
    said = np.clip(probabilities(model, rows), 1e-9, 1 - 1e-9)
    late = rows[LABEL].to_numpy()
    return float(-np.mean(late * np.log(said) + (1 - late) * np.log(1 - said)))


def _page(months: list[Month], halves: list[Halves]) -> str:
    gain = np.mean([one.loss - one.retrained for one in months])
    better = sum(one.retrained < one.loss for one in months)
    lines = [_HEAD]
    lines += [
        f"| {one.name} | {one.late:.1%} | {_names(one.flagged)} | {_names(one.alarms)} | {one.actions} | "
        f"{one.theirs} of {one.compared} | {one.loss:.4f} | {one.retrained:.4f} |"
        for one in months
    ]
    lines.append(_RETRAINING.format(better=better, months=len(months), gain=gain))
    lines += [
        f"| {one.rows:,} | {one.ours} of {one.windows} ({one.ours_columns}) | "
        f"{one.theirs} of {one.windows} ({one.theirs_columns}) |"
        for one in halves
    ]
    lines.append(_TAIL)
    return "\n".join(lines) + "\n"


def _names(keys: tuple[str, ...]) -> str:
    shown = [key.split("/", 1)[-1] for key in keys]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(shown[:4]) + more if shown else "none"


if __name__ == "__main__":
    sys.exit(main())
