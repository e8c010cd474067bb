"""Warm-up: one whole prediction before anyone calls the replica healthy, and what the model bears.

A signature says that a required column had no missing values when the model was logged, or merely
that it must be there: MLflow writes the same for both. So the model is asked once, at start: a
required column in which it cannot bear null is refused with 400 from then on, one in which it can
is accepted, as MLflow's own server does. An optional column is the model's promise: there null
always reaches it, and a failure is its fault. `/version` lists the refused columns, so that a
candidate that bears less than the champion can be told before it serves.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.replica.answers import encode, jsonable
from serving.replica.errors import BadInput, LoadFailed, ModelFault, RequestError
from serving.replica.model import Question, ServedModel

logger = logging.getLogger("interlock.replica")

_PROBE_S_MAX = 10.0

_SYNTHETIC: dict[str, Any] = {
    "double": 0.0,
    "float": 0.0,
    "integer": 0,
    "long": 0,
    "boolean": False,
    "string": "",
    "binary": "",
    "datetime": "2000-01-01T00:00:00",
}


def warm_up(served: ServedModel, folder: Path, uri: str) -> None:
    """One whole prediction, from bytes to bytes, before anyone may call the replica healthy.

    The version's own input example must pass. Without one a row of zeros and empty strings is
    tried, which a sound model may refuse: that is a warning, not a failure.
    """
    example = _input_example(folder)
    if example is not None:
        try:
            question = served.parse(example, "application/json")
            _ask(served, question)
            _learn_missing(served, question)
            return
        except BadInput as error:
            logger.warning("%s: its own input example does not fit its signature: %s", uri, error)
        except ModelFault as error:
            raise LoadFailed(
                f"{uri} fails on its own input example: {error.__cause__ or error!r}. "
                "Next: fix the model or the example."
            ) from error
    if not served.columns:
        logger.warning("%s has neither an input example nor a tabular signature: not warmed up", uri)
        return
    row = {str(column.name): _SYNTHETIC[column.kind] for column in served.columns}
    names = any(isinstance(column.name, str) for column in served.columns)
    body = json.dumps({"dataframe_records": [row]} if names else {"instances": [list(row.values())]}).encode()
    try:
        question = served.parse(body, "application/json")
        _ask(served, question)
        _learn_missing(served, question)
    except (BadInput, ModelFault) as error:
        logger.warning("%s refused the synthetic warm-up row: %s", uri, error.__cause__ or error)


def _learn_missing(served: ServedModel, question: Question) -> None:
    """Ask with nulls in the required columns, all at once and then one by one; bounded in time."""
    table = question.table
    if table is None:
        return
    asked = [i for i, column in enumerate(table.columns) if column.required and column.can_miss]
    if not asked:
        return
    if _bears(served, question, asked):
        return
    deadline = time.monotonic() + _PROBE_S_MAX
    refused = {
        table.columns[i].name
        for i in asked
        if len(asked) == 1 or time.monotonic() > deadline or not _bears(served, question, [i])
    }
    served.refuse_missing(refused)
    logger.info("Missing values are refused in: %s", ", ".join(map(str, refused)))


def _bears(served: ServedModel, question: Question, places: list[int]) -> bool:
    """Whether the model answers when these columns of a sound question are missing."""
    table = question.table
    assert table is not None
    values = list(table.values)
    for i in places:
        values[i] = table.columns[i].missing(table.rows)
    probe = replace(question, table=replace(table, values=values))
    try:
        _ask(served, probe)
    except RequestError:
        return False
    return True


def _ask(served: ServedModel, question: Question) -> None:
    encode(jsonable(served.ask(question)), wrapped=question.wrapped)


def _input_example(folder: Path) -> bytes | None:
    """The request body that MLflow keeps with a model that was logged with an input example."""
    from mlflow.models import Model

    try:
        body = Model.load(str(folder)).get_serving_input(str(folder))
    except Exception as error:  # noqa: BLE001 - whatever an old or foreign model holds there
        logger.warning("The input example cannot be read: %s", error)
        return None
    return body.encode() if body else None
