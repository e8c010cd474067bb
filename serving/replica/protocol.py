"""MLflow's scoring protocol: a request's bytes in, checked columns out.

For tabular signatures the work is done here, on lists, once per column: `dataframe_split`,
`dataframe_records`, `instances`, `inputs` and CSV all become the same columns. Everything else
(tensors, nested types, chat-style bodies, no signature) goes through MLflow's own parser, with
its errors turned into ours.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any, cast

import orjson

from serving.replica.columns import MISSING, Column
from serving.replica.errors import BadInput, UnsupportedType

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")

_TRUE, _FALSE = {"true", "True", "TRUE"}, {"false", "False", "FALSE"}
_CSV_MISSING = {"", "NA", "NaN", "nan", "null", "NULL", "None", "N/A", "n/a", "<NA>"}


@dataclass(slots=True)
class Table:
    """The checked rows of one request: `values[i]` belongs to `columns[i]`, all of `rows` length."""

    columns: tuple[Column, ...]
    values: list[list[Any]]
    rows: int
    index: list[Any] | None = None


def content_kind(content_type: str) -> str:
    """ "json" or "csv"; raises `UnsupportedType` for anything else, charsets included."""
    media, _, parameters = content_type.partition(";")
    media = media.strip().lower()
    for parameter in filter(None, (part.strip() for part in parameters.split(";"))):
        name, _, value = parameter.partition("=")
        if name.strip().lower() != "charset" or value.strip().strip('"').lower() not in ("utf-8", "utf8"):
            raise UnsupportedType(
                f"Content type parameter '{parameter[:60]}' is not supported: only charset=utf-8."
            )
    if media == "application/json":
        return "json"
    if media == "text/csv":
        return "csv"
    raise UnsupportedType(f"Content type '{media[:60]}' is not supported: use application/json or text/csv.")


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. NaN, which is not JSON but is common, reads as null."""
    try:
        document = orjson.loads(body)
    except ValueError:
        document = _parse_leniently(body)
    if not isinstance(document, dict):
        raise BadInput(
            f"The body must be a JSON object with one of {', '.join(FORMATS)}; got {_word(document)}."
        )
    return cast("dict[str, Any]", document)


def table_from_json(document: dict[str, Any], columns: tuple[Column, ...]) -> Table:
    """The checked rows of a JSON document, for a tabular signature. Raises `BadInput`."""
    present = [name for name in FORMATS if name in document]
    if len(present) != 1:
        found = ", ".join(present) if present else ", ".join(sorted(document)[:8]) or "nothing"
        raise BadInput(f"The body must have exactly one of {', '.join(FORMATS)}; got {found[:200]}.")
    data = document[present[0]]
    if present[0] == "dataframe_split":
        return _from_split(data, columns)
    if isinstance(data, dict) and present[0] != "dataframe_records":
        return _from_columns(cast("dict[str, Any]", data), columns)
    if not isinstance(data, list):
        raise BadInput(f"'{present[0]}' must be a list of rows; got {_word(data)}.")
    rows = cast("list[Any]", data)
    if not rows:
        raise BadInput(f"'{present[0]}' has no rows.")
    if all(type(row) is dict for row in rows):
        return _from_records(rows, columns)
    if present[0] == "dataframe_records":
        at = next(i for i, row in enumerate(rows) if type(row) is not dict)
        raise BadInput(f"'dataframe_records', row {at}: expected an object, got {_word(rows[at])}.")
    return _from_lists(rows, columns)


def table_from_csv(body: bytes, columns: tuple[Column, ...]) -> Table:
    """The checked rows of a CSV body with a header line, for a tabular signature."""
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError:
        raise BadInput("The CSV body is not UTF-8.") from None
    except csv.Error as error:
        raise BadInput(f"The body is not CSV: {error}.") from None
    lines = [line for line in lines if line]
    if len(lines) < 2:
        raise BadInput("The CSV body needs a header line and at least one row.")
    header, rows = lines[0], lines[1:]
    _check_widths(rows, len(header), "CSV")
    typed = [list(column) for column in zip(*rows, strict=True)]
    if isinstance(columns[0].name, int):
        named = dict(enumerate(typed))
    else:
        _refuse_doubles(header)
        named = dict(zip(header, typed, strict=True))
    return _checked(
        {c.name: [_from_text(c, text) for text in named[c.name]] for c in columns if c.name in named},
        columns,
        len(rows),
    )


def _parse_leniently(body: bytes) -> Any:
    """Slow second try: accepts NaN (as null) and says what is wrong with everything else."""
    try:
        document = json.loads(body, parse_constant=_CONSTANTS.__getitem__)
        json.dumps(document, ensure_ascii=False).encode()  # finds lone surrogates, which no model expects
    except RecursionError:
        raise BadInput("The body is nested too deeply.") from None
    except UnicodeError:
        raise BadInput("The body is not valid UTF-8.") from None
    except ValueError as error:
        where = (
            f" at line {error.lineno}, column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise BadInput(f"The body is not JSON{where}.") from None
    return document


_CONSTANTS: dict[str, float | None] = {"NaN": None, "Infinity": float("inf"), "-Infinity": float("-inf")}


def _from_split(data: Any, columns: tuple[Column, ...]) -> Table:
    if not isinstance(data, dict):
        raise BadInput(f"'dataframe_split' must be an object with columns and data; got {_word(data)}.")
    split = cast("dict[str, Any]", data)
    if extra := sorted(set(split) - {"columns", "data", "index"}):
        raise BadInput(f"'dataframe_split' has unknown keys: {', '.join(extra)[:200]}.")
    rows = split.get("data")
    if not isinstance(rows, list) or not rows:
        raise BadInput("'dataframe_split' needs 'data': a list with at least one row.")
    rows = cast("list[Any]", rows)
    if any(type(row) is not list for row in rows):
        raise BadInput("'dataframe_split': every row of 'data' must be a list.")
    labels = split.get("columns")
    if labels is None:
        labels = list(range(len(rows[0])))
    if not isinstance(labels, list):
        raise BadInput(f"'dataframe_split': 'columns' must be a list; got {_word(labels)}.")
    labels = cast("list[Any]", labels)
    _check_widths(rows, len(labels), "'dataframe_split'")
    values = list(zip(*rows, strict=True))
    if isinstance(columns[0].name, int):  # a signature without names goes by position
        labels = list(range(len(labels)))
    if any(type(label) not in (str, int) for label in labels):
        raise BadInput("'dataframe_split': every entry of 'columns' must be a string.")
    _refuse_doubles(labels)
    table = _checked({n: list(v) for n, v in zip(labels, values, strict=True)}, columns, len(rows))
    table.index = _index(split.get("index"), len(rows))
    return table


def _index(index: Any, rows: int) -> list[Any] | None:
    """The client's row labels; None where they say nothing (absent, or 0..n-1)."""
    if index is None:
        return None
    if not isinstance(index, list) or len(cast("list[Any]", index)) != rows:
        raise BadInput("'dataframe_split': 'index' must be a list with one label a row.")
    labels = cast("list[Any]", index)
    if not {type(label) for label in labels} <= {int, str}:
        raise BadInput("'dataframe_split': labels of 'index' must be integers or strings.")
    return None if labels == list(range(rows)) else labels


def _from_records(rows: list[dict[str, Any]], columns: tuple[Column, ...]) -> Table:
    named = {c.name: [row.get(c.name, MISSING) for row in rows] for c in columns}
    absent = [name for name, values in named.items() if all(value is MISSING for value in values)]
    for name in absent:
        del named[name]
    return _checked(named, columns, len(rows))


def _from_lists(rows: list[Any], columns: tuple[Column, ...]) -> Table:
    """Rows without names: a list of values for one column, a list of lists for a nameless signature."""
    nested = [type(row) is list for row in rows]
    if not any(nested) and len(columns) == 1:
        return _checked({columns[0].name: rows}, columns, len(rows))
    if not isinstance(columns[0].name, int) and len(columns) > 1:
        raise BadInput(f"The model's columns have names: send objects with {_names(columns)}.")
    if not all(nested):
        raise BadInput("Every row must be a list of the same length.")
    width = len(rows[0])
    _check_widths(rows, width, "a row")
    values = zip(*rows, strict=True)
    return _checked({c.name: list(v) for c, v in zip(columns, values, strict=False)}, columns, len(rows))


def _from_columns(data: dict[str, Any], columns: tuple[Column, ...]) -> Table:
    """An object of columns; a single value stands for one row."""
    if isinstance(columns[0].name, int):
        raise BadInput("The model's columns have no names: send a list of rows.")
    named: dict[Any, list[Any]] = {}
    for column in columns:
        if column.name in data:
            value = data[column.name]
            named[column.name] = cast("list[Any]", value) if isinstance(value, list) else [value]
    lengths = {len(values) for values in named.values()}
    if len(lengths) > 1:
        first = len(next(iter(named.values())))
        name = next(n for n, values in named.items() if len(values) != first)
        raise BadInput(
            f"Column '{name}' has {len(named[name])} values, others have {first}.", column=str(name)
        )
    if lengths == {0}:
        raise BadInput("The columns have no rows.")
    return _checked(named, columns, lengths.pop() if lengths else 0)


def _checked(named: dict[Any, list[Any]], columns: tuple[Column, ...], rows: int) -> Table:
    """The signature's columns, checked; columns that it does not know are ignored, as in MLflow.

    An optional column that is not there reads as missing values; an integer one is left out.
    """
    if len(named) < len(columns) or any(column.name not in named for column in columns):
        missing = [column for column in columns if column.name not in named and column.required]
        if missing:
            raise BadInput(f"Missing {_names(tuple(missing))}.", column=str(missing[0].name))
        present = tuple(c for c in columns if c.name in named or c.can_miss)
        if not named:
            raise BadInput(f"None of the model's columns is there: {_names(columns)}.")
        if len(present) != len(columns):
            columns = present  # the same object where all are there: joining compares by it
    values = [c.check(named[c.name]) if c.name in named else c.missing(rows) for c in columns]
    return Table(columns, values, rows)


def _from_text(column: Column, text: str) -> Any:
    """A CSV cell as the JSON value that it stands for; text that is none stays text, and is refused."""
    if column.kind in ("string", "binary", "datetime"):
        return None if text in _CSV_MISSING else text
    if text in _CSV_MISSING:
        return None
    if column.kind == "boolean":
        return True if text in _TRUE else False if text in _FALSE else text
    try:
        return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
    except ValueError:
        return text


def _check_widths(rows: list[Any], width: int, what: str) -> None:
    if set(map(len, rows)) != {width}:
        at = next(i for i, row in enumerate(rows) if len(row) != width)
        raise BadInput(f"{what}, row {at}: {len(rows[at])} values for {width} columns.")


def _refuse_doubles(labels: list[Any]) -> None:
    if len(set(labels)) != len(labels):
        name = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise BadInput(f"Column '{name}' is given twice.", column=str(name))


def _names(columns: tuple[Column, ...]) -> str:
    shown = ", ".join(f"'{column.name}' ({column.kind})" for column in columns[:20])
    more = f" and {len(columns) - 20} more" if len(columns) > 20 else ""
    return f"column{'s' if len(columns) > 1 else ''} {shown}{more}"


def _word(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(value), "a scalar"
    )
