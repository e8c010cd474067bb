"""Columns of a signature: JSON values in, checked and typed values out, with the column named.

Stricter than MLflow's scoring server where that one changes values in silence: 1.5 is no integer,
"5" is no number, true is no number, and a value that does not fit its type is refused. Equal to it
where a value is accepted: the frame that the model gets is the same.

Missing values (null, NaN, an absent key): an optional column may miss them, a required one only
where the model bears it (`warmup.py` finds out), an integer never, as in MLflow. An optional column
that a request leaves out altogether reads as missing values, so that an answer does not depend on
which other rows came along.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.replica.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow.types import Schema

MISSING = object()
"""Stands for a key that a record lacks; null says the same in the client's words."""

_FLOAT32_MAX = 3.4028234663852886e38
_INT_BITS = {"integer": 32, "long": 64}
_DTYPES = {
    "double": "float64",
    "float": "float32",
    "integer": "int32",
    "long": "int64",
    "boolean": "bool",
    "string": "object",
    "binary": "object",
    "datetime": "datetime64[ns]",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a tabular signature. `kind` is MLflow's name of the type."""

    name: Any
    kind: str
    required: bool
    may_miss: bool

    @property
    def can_miss(self) -> bool:
        """Whether the type has a value that stands for a missing one. Integers have none."""
        return self.kind not in _INT_BITS

    def missing(self, rows: int) -> list[Any]:
        """Checked values of a column in which every value is missing."""
        import pandas as pd

        filler = math.nan if self.kind in ("double", "float") else pd.NaT if self.kind == "datetime" else None
        return [filler] * rows

    def check(self, values: list[Any]) -> list[Any]:
        """The values, typed for this column, or `BadInput` that names the column and the row."""
        return _CHECKS[self.kind](self, values)

    def array(self, values: list[Any]) -> np.ndarray:
        """Checked values as the array that MLflow's own enforcement would make."""
        import numpy as np

        dtype = _DTYPES[self.kind]
        if self.kind == "boolean" and None in values:
            dtype = "object"
        if dtype != "object":
            return np.array(values, dtype=dtype)
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    def refuse(self, row: int, found: str) -> BadInput:
        """The error for one value: never the value itself, which may be private."""
        return BadInput(
            f"Column '{self.name}', row {row}: expected {self.kind}, got {found}.", column=str(self.name)
        )

    def refuse_missing(self, row: int) -> BadInput:
        """The error for a missing value where none may be."""
        why = "integers cannot be missing" if self.kind in _INT_BITS else "the signature requires a value"
        return BadInput(f"Column '{self.name}', row {row}: missing value, but {why}.", column=str(self.name))


def tabular_columns(schema: Schema | None) -> tuple[Column, ...] | None:
    """The columns of a signature of plain columns; None for tensors, nested types, or no signature."""
    from mlflow.types import DataType

    if schema is None or schema.is_tensor_spec() or not schema.inputs:
        return None
    columns: list[Column] = []
    for position, spec in enumerate(schema.inputs):
        if not isinstance(spec.type, DataType) or spec.type.name not in _DTYPES:
            return None
        name = spec.name if schema.has_input_names() else position
        columns.append(Column(name, spec.type.name, spec.required, spec.type.name not in _INT_BITS))
    if len({column.name for column in columns}) != len(columns):
        return None
    return tuple(columns)


def build_frame(
    columns: tuple[Column, ...], values: list[list[Any]], index: list[Any] | None
) -> pd.DataFrame:
    """The model's input: one frame of checked values. `index` as the client sent it, or 0..n-1."""
    import pandas as pd

    arrays = [column.array(column_values) for column, column_values in zip(columns, values, strict=True)]
    labels = pd.Index([column.name for column in columns])
    rows = pd.RangeIndex(len(values[0])) if index is None else pd.Index(index)
    from_arrays: Callable[..., pd.DataFrame] | None = getattr(pd.DataFrame, "_from_arrays", None)
    if from_arrays is None:  # private, but a third of the public constructor's time
        return pd.DataFrame(dict(zip(labels, arrays, strict=True)), index=rows)
    return from_arrays(arrays, labels, rows, verify_integrity=False)


def _without_missing(column: Column, values: list[Any], filler: Any) -> list[Any]:
    """Values with `filler` for each missing one, refused where the column may not miss any."""
    for row, value in enumerate(values):
        if (value is None or value is MISSING) and not column.may_miss:
            raise column.refuse_missing(row)
    return [filler if value is None or value is MISSING else value for value in values]


def _offender(column: Column, values: list[Any], accepted: tuple[type, ...]) -> BadInput:
    for row, value in enumerate(values):
        if type(value) not in accepted:
            return column.refuse(row, _TYPE_WORDS.get(type(value), type(value).__name__))
    raise AssertionError("no value offends")


def _check_float(column: Column, values: list[Any]) -> list[Any]:
    types = set(map(type, values))
    if not types <= _FLOATS:
        values = _without_missing(column, values, math.nan)
        if not set(map(type, values)) <= _FLOATS:
            raise _offender(column, values, (float, int))
    if int in types:
        try:
            values = [float(value) for value in values]
        except OverflowError:
            values = [value if type(value) is float or abs(value) < 10**308 else math.inf for value in values]
    largest = _FLOAT32_MAX if column.kind == "float" else math.inf
    for row, value in enumerate(values):
        if abs(value) >= largest and (math.isinf(value) or abs(value) > largest):
            raise column.refuse(row, "a number that does not fit")
    return values


def _check_int(column: Column, values: list[Any]) -> list[Any]:
    types = set(map(type, values))
    if not types <= _INTS:
        for row, value in enumerate(values):
            if value is None or value is MISSING:
                raise column.refuse_missing(row)
            if type(value) is float and not value.is_integer():
                raise column.refuse(row, "a number with a fraction")
        if not types <= _FLOATS:
            raise _offender(column, values, (int, float))
        values = [int(value) for value in values]
    bound = 1 << (_INT_BITS[column.kind] - 1)
    if max(values) >= bound or min(values) < -bound:
        row = next(i for i, value in enumerate(values) if not -bound <= value < bound)
        raise column.refuse(row, f"a number beyond {_INT_BITS[column.kind]} bits")
    return values


def _check_boolean(column: Column, values: list[Any]) -> list[Any]:
    if set(map(type, values)) != {bool}:
        values = _without_missing(column, values, None)
        if not set(map(type, values)) <= {bool, type(None)}:
            raise _offender(column, values, (bool, type(None)))
    return values


def _check_string(column: Column, values: list[Any]) -> list[Any]:
    if set(map(type, values)) != {str}:
        values = _without_missing(column, values, None)
        if not set(map(type, values)) <= {str, type(None)}:
            raise _offender(column, values, (str, type(None)))
    return values


def _check_binary(column: Column, values: list[Any]) -> list[Any]:
    decoded: list[Any] = []
    for row, value in enumerate(_check_string(column, values)):
        try:
            decoded.append(None if value is None else base64.b64decode("".join(value.split()), validate=True))
        except ValueError:
            raise column.refuse(row, "text that is not base64") from None
    return decoded


def _check_datetime(column: Column, values: list[Any]) -> list[Any]:
    import pandas as pd

    parsed: list[Any] = []
    for row, value in enumerate(_check_string(column, values)):
        try:
            moment = pd.NaT if value is None else pd.Timestamp(value)
            if moment is not pd.NaT and moment.tzinfo is not None:
                raise column.refuse(row, "a time with a zone (signatures are zone-less)")
            parsed.append(
                moment.to_datetime64() if moment is pd.NaT else moment.as_unit("ns").to_datetime64()
            )
        except (ValueError, OverflowError, TypeError):
            raise column.refuse(row, "text that is no date or time") from None
    return parsed


_FLOATS, _INTS = {float, int}, {int}
_TYPE_WORDS = {
    str: "a string",
    bool: "a boolean",
    dict: "an object",
    list: "a list",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_CHECKS: dict[str, Callable[[Column, list[Any]], list[Any]]] = {
    "double": _check_float,
    "float": _check_float,
    "integer": _check_int,
    "long": _check_int,
    "boolean": _check_boolean,
    "string": _check_string,
    "binary": _check_binary,
    "datetime": _check_datetime,
}
