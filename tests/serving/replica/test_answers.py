"""Answers have MLflow's shapes and are JSON, whatever the model returns."""

import datetime
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replica.answers import encode, has_nonfinite, jsonable
from serving.replica.errors import ModelFault


def strictly(body: bytes) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(body, parse_constant=refuse)


def answer(raw: Any) -> Any:
    return strictly(encode(jsonable(raw), wrapped=True))["predictions"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (np.array([1.5, np.nan, np.inf]), [1.5, None, None]),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array(["a", None], dtype=object), ["a", None]),
        (np.float32(0.5), 0.5),
        (np.array([True]), [True]),
        (
            pd.DataFrame({"p": [0.5, np.nan], "c": ["x", None]}),
            [{"p": 0.5, "c": "x"}, {"p": None, "c": None}],
        ),
        (pd.Series([1, 2], name="y"), [{"y": 1}, {"y": 2}]),
        (pd.Series([1]), [{"0": 1}]),
        ([np.int64(3), {"a": np.array([1.0, np.nan])}], [3, {"a": [1.0, None]}]),
        (
            {"when": datetime.date(2013, 7, 1), 3: pd.Timestamp("2013-07-01")},
            {"when": "2013-07-01", "3": "2013-07-01T00:00:00"},
        ),
        (b"\x00\x01", "AAE=\n"),
        (2**80, 2**80),
        ([float("nan"), 2**80], [None, 2**80]),
        ("\ud800", "\ud800"),
        (None, None),
        (pd.NaT, None),
    ],
)
def test_shapes(raw: Any, expected: Any) -> None:
    assert answer(raw) == expected


def test_chat_style_answers_are_not_wrapped() -> None:
    assert strictly(encode({"choices": []}, wrapped=False)) == {"choices": []}


def test_what_json_cannot_express_is_the_models_fault() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for raw in ({1, 2}, object(), circle, 1j):
        with pytest.raises(ModelFault):
            encode(jsonable(raw), wrapped=True)


def test_counts_answers_that_are_not_finite() -> None:
    assert has_nonfinite(np.array([1.0, np.inf]))
    assert has_nonfinite(pd.DataFrame({"p": [np.nan]}))
    assert not has_nonfinite(np.array([1.0]))
    assert not has_nonfinite(np.array(["a"]))
    assert not has_nonfinite([1.0])


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.floats() | st.integers() | st.text(),
        lambda i: st.lists(i) | st.dictionaries(st.text() | st.integers(), i),
    )
)
def test_always_json(raw: Any) -> None:
    strictly(encode(raw, wrapped=True))
