"""Do two answers of the scoring protocol say the same?

An answer is JSON as MLflow's scoring server gives it: `{"predictions": ...}` with numbers, strings,
lists, nested lists or records. Classes must be equal, numbers may differ by `score_tolerance`
(absolute), and answers of different shape never agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether two answers agree; otherwise where and how they differ first.

    `largest` is the largest difference between two numbers at the same place (0 without numbers).
    """

    agree: bool
    reason: str = ""
    largest: float = 0.0


def compare_bodies(candidate: bytes, champion: bytes, *, score_tolerance: float) -> Agreement:
    """Compare two response bodies. A body that is not JSON agrees only with the same bytes."""
    if candidate == champion:
        return Agreement(True)
    try:
        ours, theirs = json.loads(candidate), json.loads(champion)
    except (ValueError, RecursionError):
        return Agreement(False, "not both are JSON, and the bytes differ")
    return compare_predictions(ours, theirs, score_tolerance=score_tolerance)


def compare_predictions(candidate: object, champion: object, *, score_tolerance: float) -> Agreement:
    """Compare two decoded payloads; of two objects with `predictions` only these are compared."""
    if isinstance(candidate, Mapping) and isinstance(champion, Mapping):
        ours, theirs = cast("Mapping[str, object]", candidate), cast("Mapping[str, object]", champion)
        if "predictions" in ours and "predictions" in theirs:
            candidate, champion = ours["predictions"], theirs["predictions"]
    comparison = _Comparison(score_tolerance)
    comparison.visit(candidate, champion, "predictions")
    return Agreement(comparison.reason is None, comparison.reason or "", comparison.largest)


class _Comparison:
    """One walk over both payloads; keeps the first difference and the largest distance."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self.reason: str | None = None
        self.largest = 0.0

    def visit(self, ours: Any, theirs: Any, place: str) -> None:
        """Compare what stands at one place; `place` is a path such as predictions[3].score."""
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            self._records(cast("Mapping[str, Any]", ours), cast("Mapping[str, Any]", theirs), place)
        elif isinstance(ours, list) and isinstance(theirs, list):
            self._lists(cast("Sequence[Any]", ours), cast("Sequence[Any]", theirs), place)
        elif (our := _number(ours)) is not None and (their := _number(theirs)) is not None:
            self._numbers(our, their, place)
        elif type(ours) is not type(theirs) or ours != theirs:
            self._differ(f"{place}: {_short(ours)} against {_short(theirs)}")

    def _records(self, ours: Mapping[str, Any], theirs: Mapping[str, Any], place: str) -> None:
        if ours.keys() != theirs.keys():
            odd = ", ".join(sorted(ours.keys() ^ theirs.keys()))
            self._differ(f"{place}: only one version has {odd}")
        for key in ours.keys() & theirs.keys():
            self.visit(ours[key], theirs[key], f"{place}.{key}")

    def _lists(self, ours: Sequence[Any], theirs: Sequence[Any], place: str) -> None:
        if len(ours) != len(theirs):
            self._differ(f"{place}: {len(ours)} entries against {len(theirs)}")
        for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
            self.visit(our, their, f"{place}[{index}]")

    def _numbers(self, ours: float, theirs: float, place: str) -> None:
        if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
            return
        distance = abs(ours - theirs)
        if not math.isfinite(distance):
            distance = math.inf
        self.largest = max(self.largest, distance)
        # A relative rounding error of a decimal text must not decide at the edge of the tolerance.
        rounding = 1e-12 * max(abs(ours), abs(theirs))
        if math.isinf(distance) or distance > self._tolerance + rounding:
            self._differ(f"{place}: {ours:g} against {theirs:g}, tolerance {self._tolerance:g}")

    def _differ(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason


def _number(value: object) -> float | None:
    """JSON's number; true and false are not numbers. An integer beyond floats counts as infinite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
