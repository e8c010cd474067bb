"""The serving code of the five flight models; MLflow copies this one file into every artifact.

A model is data plus this code: `recipe.json` says how a row becomes numbers and which extra
step the version has, `estimator.skops` is the fitted scikit-learn classifier (no pickle
anywhere), `reference.npz` exists for the version with neighbours. So a replica needs nothing
of this checkout. The answer is the probability of arriving late, one float a row.

Two of the extra steps carry an honest mistake, the kind that passes a code review:

- `timetable` looks a flight up in the timetable that was in force when the model was built,
  and does not say what to do with a flight that joined the timetable later.
- `neighbours` compares a flight with thousands of past ones in scratch memory that is sized for
  one request at a time. A second request at the same moment takes a frugal, slower path, and
  for a third there is no memory left.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow  # noqa: TID253 - MLflow itself runs this file
import numpy as np
from mlflow.pyfunc import PythonModel  # noqa: TID253

Matrix = np.ndarray[Any, np.dtype[np.float64]]


class Encoder:
    """Turns rows into the numbers that an estimator was fitted on.

    `recipe` holds `one_hot` (column to its known values), `binned` (column to inner edges) and
    `scaled` (column to mean and deviation). A value that a one-hot column does not know is all
    zeros; a missing measurement is a bin and a flag of its own.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        self._one_hot = {
            column: {value: place for place, value in enumerate(values)}
            for column, values in recipe["one_hot"].items()
        }
        self._binned = {column: np.asarray(edges) for column, edges in recipe["binned"].items()}
        self._scaled: dict[str, tuple[float, float]] = recipe["scaled"]
        self.width = (
            sum(len(known) for known in self._one_hot.values())
            + sum(len(edges) + 2 for edges in self._binned.values())
            + 2 * len(self._scaled)
        )

    def __call__(self, frame: Any) -> Matrix:
        """Encode a frame of n rows as (n, width)."""
        rows = np.arange(len(frame))
        out = np.zeros((len(frame), self.width))
        start = 0
        for column, known in self._one_hot.items():
            places = np.fromiter(
                (known.get(value, -1) for value in _values(frame, column)), np.intp, len(frame)
            )
            seen = places >= 0
            out[rows[seen], start + places[seen]] = 1.0
            start += len(known)
        for column, edges in self._binned.items():
            values = _measured(frame, column)
            places = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right"))
            # searchsorted puts NaN last as well; np.where keeps that from depending on it.
            out[rows, start + places] = 1.0
            start += len(edges) + 2
        for column, (mean, deviation) in self._scaled.items():
            values = (_measured(frame, column) - mean) / deviation
            missing = np.isnan(values)
            out[:, start] = np.clip(np.where(missing, 0.0, values), -4.0, 4.0)
            out[:, start + 1] = missing
            start += 2
        return out


def _measured(frame: Any, column: str) -> Matrix:
    """A numeric column; one that a client left out is missing in every row."""
    if column not in frame.columns:
        return np.full(len(frame), np.nan)
    return frame[column].to_numpy(dtype=np.float64)


def _values(frame: Any, column: str) -> list[Any]:
    """A column as plain values; `dep_hour` is derived, so that clients need not send it."""
    if column == "dep_hour":
        return (frame["dep_minute"].to_numpy() // 60).tolist()
    return frame[column].tolist()


def slot_keys(frame: Any) -> list[str]:
    """The timetable slot of every row: carrier, route and hour of departure."""
    hours = _values(frame, "dep_hour")
    columns = (frame["carrier"].tolist(), frame["origin"].tolist(), frame["dest"].tolist(), hours)
    return [
        f"{carrier} {origin}-{dest} {hour:02d}h" for carrier, origin, dest, hour in zip(*columns, strict=True)
    ]


class Timetable:
    """How late each slot of the timetable usually is, in log-odds.

    A slot that the timetable lacks is a KeyError: nobody thought of the summer timetable.
    """

    def __init__(self, log_odds: dict[str, float]) -> None:
        self._log_odds = log_odds

    def __call__(self, frame: Any) -> Matrix:
        """Log-odds of lateness, (n, 1)."""
        return np.array([[self._log_odds[key]] for key in slot_keys(frame)])


class OutOfWorkspace(RuntimeError):
    """Every piece of scratch memory is in use by other requests."""


class Workspaces:
    """Scratch memory for comparisons, allocated once so that memory stays flat under load.

    One arena takes the fast path. While it is taken, one request may work frugally, in small
    blocks; whoever comes then finds nothing.
    """

    def __init__(self, rows: int, reference: int) -> None:
        self._arena = np.empty((rows, reference), dtype=np.float32)
        self._free = threading.Lock()
        self._frugal = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[np.ndarray[Any, np.dtype[np.float32]] | None]:
        """Yield the arena, or None for the frugal path. Raises `OutOfWorkspace`."""
        if self._free.acquire(blocking=False):
            held, arena = self._free, self._arena
        elif self._frugal.acquire(blocking=False):
            held, arena = self._frugal, None
        else:
            raise OutOfWorkspace("all scratch workspaces are in use")
        try:
            yield arena
        finally:
            held.release()


class Neighbours:
    """Lateness among similar past flights: a kernel average over all of `reference`.

    `points` is (m, d) scaled, `late` is (m,) of 0 and 1. Two flights at squared distance
    `bandwidth` weigh 1/e.
    """

    CHUNK = 32
    """Rows compared at once in the arena."""

    FRUGAL_BLOCK = 96
    """Reference flights compared at once without it."""

    def __init__(self, points: Any, late: Any, bandwidth: float) -> None:
        self._points = np.ascontiguousarray(points, dtype=np.float32)
        self._squares = (self._points**2).sum(axis=1)
        self._late = np.ascontiguousarray(late, dtype=np.float32)
        self._scale = np.float32(-1.0 / bandwidth)
        self._workspaces = Workspaces(self.CHUNK, len(self._points))

    def __call__(self, queries: Any) -> Matrix:
        """Share of late flights among the neighbours of each query (n, d), as (n,)."""
        queries = np.asarray(queries, dtype=np.float32)
        out = np.empty(len(queries))
        with self._workspaces.take() as arena:
            for start in range(0, len(queries), self.CHUNK):
                chunk = queries[start : start + self.CHUNK]
                average = (
                    self._frugally(chunk) if arena is None else self._in_arena(chunk, arena[: len(chunk)])
                )
                out[start : start + len(chunk)] = average
        return out

    def _in_arena(self, chunk: Any, weights: Any) -> Any:
        np.matmul(chunk, self._points.T, out=weights)
        weights *= -2.0
        weights += self._squares
        weights += (chunk**2).sum(axis=1, keepdims=True)
        weights *= self._scale
        np.exp(weights, out=weights)
        return (weights @ self._late + _PRIOR_WEIGHT * _PRIOR) / (weights.sum(axis=1) + _PRIOR_WEIGHT)

    def _frugally(self, chunk: Any) -> Any:
        """The same sums in small blocks: little memory, many times the calls."""
        total, late = np.zeros(len(chunk)), np.zeros(len(chunk))
        for start in range(0, len(self._points), self.FRUGAL_BLOCK):
            block = slice(start, start + self.FRUGAL_BLOCK)
            offsets = chunk[:, None, :] - self._points[block]
            weights = np.exp((offsets**2).sum(axis=2) * self._scale)
            total += weights.sum(axis=1)
            late += weights @ self._late[block]
        return (late + _PRIOR_WEIGHT * _PRIOR) / (total + _PRIOR_WEIGHT)


_PRIOR, _PRIOR_WEIGHT = 0.24, 2.0
"""A flight without neighbours gets the usual share of late flights, worth two neighbours."""


class FlightModel(PythonModel):
    """What MLflow loads: encoder, estimator and the version's extra step."""

    def load_context(self, context: Any) -> None:
        """Read the artifacts; called once a replica."""
        import skops.io

        files: dict[str, str] = context.artifacts
        recipe = json.loads(Path(files["recipe"]).read_text())
        self._encode = Encoder(recipe["encoder"])
        self._estimator = skops.io.load(files["estimator"])
        self._timetable = Timetable(recipe["timetable"]) if "timetable" in recipe else None
        self._neighbours = None
        if "reference" in files:
            with np.load(files["reference"]) as reference:
                self._neighbours = Neighbours(reference["points"], reference["late"], recipe["bandwidth"])
            self._nearby = Encoder(recipe["nearby"])
            self._blend = float(recipe["blend"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Probability that each flight arrives more than 15 minutes late, shape (n,)."""
        encoded = self._encode(model_input)
        if self._timetable is not None:
            encoded = np.hstack([encoded, self._timetable(model_input)])
        late = self._estimator.predict_proba(encoded)[:, 1]
        if self._neighbours is not None:
            late = (1 - self._blend) * late + self._blend * self._neighbours(self._nearby(model_input))
        return late


mlflow.models.set_model(FlightModel())
