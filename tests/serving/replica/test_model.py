"""Served models against MLflow itself: the same frames, the same answers, better refusals."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replica.answers import encode, jsonable
from serving.replica.columns import build_frame
from serving.replica.errors import BadInput, ModelFault
from serving.replica.model import ServedModel
from tests.serving.replica.registering import flights

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

JSON = "application/json"
Served = Callable[[str], ServedModel]


def body(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def ask(model: ServedModel, document: dict[str, Any]) -> Any:
    question = model.parse(body(document), JSON)
    return json.loads(encode(jsonable(model.ask(question)), wrapped=question.wrapped))


def strange(**changes: Any) -> dict[str, Any]:
    return {"x": 1.5, "n": 2, "mode": "ok"} | changes


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "inputs", "instances"])
def test_the_frame_is_the_one_that_mlflow_builds(served: Served, form: str) -> None:
    from mlflow.models.utils import _enforce_schema
    from mlflow.pyfunc.scoring_server import infer_and_parse_data
    from pandas.testing import assert_frame_equal

    model = served("flights")
    frame = flights(5)
    shape = {
        "dataframe_split": frame.to_dict(orient="split"),
        "dataframe_records": frame.to_dict(orient="records"),
        "inputs": frame.to_dict(orient="list"),
        "instances": frame.to_dict(orient="records"),
    }[form]
    table = model.parse(body({form: shape}), JSON).table
    assert table is not None
    ours = build_frame(table.columns, table.values, table.index)
    schema = model._schema
    theirs = _enforce_schema(infer_and_parse_data(json.loads(body({form: shape})), schema), schema)
    assert_frame_equal(ours, theirs)


def test_answers_are_those_of_pyfunc(served: Served) -> None:
    model = served("flights")
    frame = flights(20)
    expected = model._pyfunc.predict(frame)
    answered = ask(model, {"dataframe_split": frame.to_dict(orient="split")})["predictions"]
    np.testing.assert_allclose(answered, expected, rtol=1e-12)
    csv = model.parse(frame.to_csv(index=False).encode(), "text/csv")
    np.testing.assert_allclose(model.ask(csv), expected, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=6))
def test_joined_answers_are_the_single_ones(served: Served, sizes: list[int]) -> None:
    model = served("flights")
    frame = flights(sum(sizes))
    questions, start = [], 0
    for size in sizes:
        rows = frame.iloc[start : start + size].to_dict(orient="split")  # with a foreign index
        questions.append(model.parse(body({"dataframe_split": rows}), JSON))
        start += size
    assert len({question.join_key for question in questions}) == 1
    for joined, question in zip(model.ask_joined(questions), questions, strict=True):
        np.testing.assert_allclose(joined, model.ask(question), rtol=1e-12)


def test_missing_values_are_refused_where_the_model_cannot_bear_them(served: Served) -> None:
    model = served("flights")
    assert model.refuses_missing == ["delay", "distance"]
    row = flights(1).to_dict(orient="records")[0]
    assert ask(model, {"dataframe_records": [row | {"carrier": None}]})["predictions"]
    with pytest.raises(BadInput, match="'delay', row 0: missing value"):
        model.parse(body({"dataframe_records": [row | {"delay": None}]}), JSON)


def test_missing_values_pass_where_the_model_bears_them(served: Served) -> None:
    model = served("strange")
    assert model.refuses_missing == ["mode"]
    assert ask(model, {"inputs": [strange(x=None)]}) == {"predictions": [None]}


def test_params(served: Served) -> None:
    model = served("strange")
    plain = {"inputs": [strange()]}
    assert ask(model, plain) == {"predictions": [5.0]}
    assert ask(model, plain | {"params": {"plus": 10}}) == {"predictions": [15.0]}
    assert (
        model.parse(body(plain), JSON).join_key
        != model.parse(body(plain | {"params": {"plus": 1.0}}), JSON).join_key
    )
    for params in ({"plus": "much"}, [1], "plus"):
        with pytest.raises(BadInput, match="params"):
            model.parse(body(plain | {"params": params}), JSON)


@pytest.mark.parametrize("mode", ["raise", "exit"])
def test_whatever_the_model_raises_is_its_fault(served: Served, mode: str) -> None:
    model = served("strange")
    with pytest.raises(ModelFault) as fault:
        ask(model, {"inputs": [strange(mode=mode)]})
    assert "tattletale" not in str(fault.value)
    assert fault.value.__cause__ is not None


@pytest.mark.parametrize("name", ["tensor", "unsigned"])
def test_what_is_no_table_goes_through_mlflow(served: Served, name: str) -> None:
    model = served(name)
    answered = ask(model, {"instances": [[1.0, 2.0], [3.0, 4.0]]})["predictions"]
    np.testing.assert_allclose(np.ravel(answered), [3.0, 7.0], atol=1e-9)
    assert model.parse(body({"instances": [[1.0, 2.0]]}), JSON).join_key is None


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [["a", "b"]]},
        {"instances": [[1.0, 2.0, 3.0]]},
        {"instances": 3},
        {"inputs": {"a": [1]}},
        {"dataframe_split": {"columns": [[]]}},
        {"nothing": 1},
        {},
    ],
)
def test_bad_tensors_are_refused(served: Served, document: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        served("tensor").parse(body(document), JSON)


def test_type_hints(served: Served) -> None:
    model = served("hinted")
    message = {"role": "user", "length": 3}
    assert ask(model, {"inputs": [message]}) == {"predictions": [3]}
    with pytest.raises(BadInput, match="does not fit"):
        ask(model, {"inputs": [message | {"length": "long"}]})
    with pytest.raises(ModelFault):
        ask(model, {"inputs": [message | {"role": "raise"}]})
