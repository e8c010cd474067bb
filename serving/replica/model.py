"""The model of one replica: what it accepts, and how it is asked.

MLflow's `PyFuncModel.predict` checks the signature again on every call and looks up the same
metadata each time; that costs more than a small model does. Here the signature is compiled once,
requests are checked against it before the model sees them, and the model's own function is called
with the frame that MLflow would have built. Models that this does not fit go through MLflow.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from serving.replica.columns import build_frame, tabular_columns
from serving.replica.errors import BadInput, ModelFault
from serving.replica.protocol import Table, content_kind, parse_json, table_from_csv, table_from_json

if TYPE_CHECKING:
    from mlflow.pyfunc import PyFuncModel

_TYPE_HINT_CHECKS = ("mlflow.types.type_hints", "mlflow.pyfunc.utils.data_validation")


@dataclass(slots=True)
class Question:
    """One checked request. Questions with the same `join_key` may be asked as one; None: never.

    Either `table` is set (tabular signature) or `data`, in the form that MLflow's parser made.
    `wrapped` says whether the answer goes under "predictions".
    """

    rows: int
    table: Table | None = None
    data: Any = None
    params: dict[str, Any] | None = None
    join_key: Hashable | None = None
    wrapped: bool = True


class ServedModel:
    """One loaded pyfunc model, ready to be asked by several threads at a time."""

    def __init__(self, pyfunc: PyFuncModel) -> None:
        from mlflow.pyfunc.context import Context

        metadata = pyfunc.metadata
        self._pyfunc = pyfunc
        self._schema = metadata.get_input_schema()
        self._params_schema = metadata.get_params_schema()
        has_hints = (
            metadata._is_signature_from_type_hint()  # pyright: ignore[reportPrivateUsage]
            or metadata._is_type_hint_from_example()  # pyright: ignore[reportPrivateUsage]
        )
        self.columns = None if has_hints else tabular_columns(self._schema)
        self.model_id: str | None = metadata.model_id
        self._is_direct = not has_hints and not (metadata.metadata or {}).get("dependencies_schemas")
        self._context = Context(model_id=self.model_id) if self.model_id else None
        name = metadata.flavors["python_function"].get("predict_fn", "predict")
        self._function = getattr(pyfunc._model_impl, name)  # pyright: ignore[reportPrivateUsage]
        accepts = inspect.signature(self._function).parameters.get("params")
        self._takes_params = accepts is not None and accepts.kind is not inspect.Parameter.VAR_KEYWORD

    @property
    def refuses_missing(self) -> list[str]:
        """Required columns in which the model cannot bear a missing value. For those null is a 400."""
        return [str(c.name) for c in self.columns or () if c.can_miss and not c.may_miss]

    def refuse_missing(self, names: set[Any]) -> None:
        """Refuse missing values in these columns, because the model cannot bear them there."""
        if self.columns is not None:
            self.columns = tuple(
                replace(column, may_miss=column.may_miss and column.name not in names)
                for column in self.columns
            )

    def parse(self, body: bytes, content_type: str) -> Question:
        """A request's bytes as a checked question. Raises `BadInput` or `UnsupportedType` only."""
        kind = content_kind(content_type)
        if self.columns is None:
            return self._parse_by_mlflow(body, kind)
        if kind == "csv":
            table, params = table_from_csv(body, self.columns), None
        else:
            document = parse_json(body)
            table, params = table_from_json(document, self.columns), document.get("params")
        params = self._checked_params(params)
        names = "" if table.columns is self.columns else tuple(column.name for column in table.columns)
        key = (names, json.dumps(params, sort_keys=True, default=str) if params else "")
        return Question(table.rows, table=table, params=params, join_key=key)

    def ask(self, question: Question) -> Any:
        """The model's raw answer to one question. Raises `ModelFault`, or `BadInput` from type hints."""
        if question.table is None:
            return self._call(question.data, question.params)
        table = question.table
        return self._call(build_frame(table.columns, table.values, table.index), question.params)

    def ask_joined(self, questions: Sequence[Question]) -> list[Any]:
        """The raw answers to questions with one `join_key`, asked in one call, split by rows.

        Raises `ModelFault` where the model raised or did not answer row by row; the caller then
        asks each on its own.
        """
        tables = [cast("Table", question.table) for question in questions]
        values: list[list[Any]] = [
            [value for part in parts for value in part]
            for parts in zip(*(table.values for table in tables), strict=True)
        ]
        raw = self._call(build_frame(tables[0].columns, values, None), questions[0].params)
        return _split(raw, [question.rows for question in questions])

    def _call(self, data: Any, params: dict[str, Any] | None) -> Any:
        from mlflow.pyfunc.context import set_prediction_context

        try:
            if not self._is_direct:
                return self._pyfunc.predict(data, params=params)
            with set_prediction_context(self._context):
                if self._takes_params:
                    return self._function(data, params=params)
                return self._function(data)
        except BaseException as error:  # a model that calls sys.exit() must not take the worker along
            if not self._is_direct and (reason := _refused_by_type_hint(error)):
                raise BadInput(reason) from error
            raise ModelFault("The model failed on this request.") from error

    def _checked_params(self, params: Any) -> dict[str, Any] | None:
        if self._params_schema is None:
            return None  # as MLflow: ignored where the signature names none
        from mlflow.exceptions import MlflowException
        from mlflow.models.utils import _enforce_params_schema  # pyright: ignore[reportPrivateUsage]

        if params is not None and not isinstance(params, dict):
            raise BadInput("'params' must be an object.")
        try:
            return _enforce_params_schema(cast("dict[str, Any] | None", params), self._params_schema)
        except (MlflowException, ValueError, TypeError, OverflowError) as error:
            raise BadInput(f"'params' do not fit the signature: {_first_line(error)}") from error

    def _parse_by_mlflow(self, body: bytes, kind: str) -> Question:
        """MLflow's own parser and enforcement, for what is not a table of plain columns."""
        import io

        from mlflow.pyfunc import (
            _validate_prediction_input,  # pyright: ignore[reportPrivateUsage]
            scoring_server,
        )

        document = parse_json(body) if kind == "json" else None
        try:
            if document is None:
                data: Any = scoring_server.parse_csv_input(io.BytesIO(body), schema=cast("Any", self._schema))
                params, wrapped = None, True
            else:
                parse = scoring_server._parse_json_data  # pyright: ignore[reportPrivateUsage]
                parsed = parse(document, self._pyfunc.metadata, self._schema)
                data, params, wrapped = parsed.data, parsed.params, not parsed.is_unified_llm_input
        except Exception as error:  # the model has not been asked yet: whatever is wrong, it is the input
            raise BadInput(f"The input does not fit the model: {_first_line(error)}") from error
        params = self._checked_params(params)
        if self._is_direct:
            try:
                data, params = _validate_prediction_input(data, params, self._schema, self._params_schema)
            except Exception as error:
                raise BadInput(f"The input does not fit the model: {_first_line(error)}") from error
        return Question(_row_count(data), data=data, params=params, wrapped=wrapped)


def _split(raw: Any, rows: list[int]) -> list[Any]:
    """A joined answer by rows; only for answers that have exactly one entry a row."""
    import numpy as np
    import pandas as pd

    if not isinstance(raw, np.ndarray | pd.DataFrame | pd.Series | list) or len(cast("Any", raw)) != sum(
        rows
    ):
        raise ModelFault("The model does not answer row by row, so its requests cannot be joined.")
    parts: list[Any] = []
    start = 0
    for count in rows:
        part: Any = (
            raw.iloc[start : start + count]
            if isinstance(raw, pd.DataFrame | pd.Series)
            else raw[start : start + count]
        )
        parts.append(part)
        start += count
    return parts


def _row_count(data: Any) -> int:
    try:
        return len(data)
    except TypeError:
        return 1


def _refused_by_type_hint(error: BaseException) -> str | None:
    """The reason, where MLflow's own type-hint check raised before the model's code ran."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return f"The input does not fit the model: {_first_line(error)}" if module in _TYPE_HINT_CHECKS else None


def _first_line(error: BaseException) -> str:
    """The start of an error's text: MLflow's later lines hold traces and the data itself."""
    text = str(getattr(error, "message", error)).strip()
    # "Failed to enforce schema of data '...' with schema '...'. Error: WHAT WE WANT"
    return text.rpartition("Error: ")[2].partition("\n")[0][:300] or type(error).__name__
