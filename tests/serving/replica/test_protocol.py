"""The scoring protocol on tabular signatures: what is accepted, and how the rest is refused."""

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.replica.columns import Column, build_frame
from serving.replica.errors import BadInput, UnsupportedType
from serving.replica.protocol import Table, content_kind, parse_json, table_from_csv, table_from_json

DELAY = Column("delay", "double", required=True, may_miss=False)
HOUR = Column("hour", "long", required=True, may_miss=False)
CARRIER = Column("carrier", "string", required=True, may_miss=True)
RAIN = Column("rain", "double", required=False, may_miss=True)
COLUMNS = (DELAY, HOUR, CARRIER, RAIN)
NAMELESS = (
    Column(0, "double", required=True, may_miss=False),
    Column(1, "long", required=True, may_miss=False),
)

ROWS = [[1.5, 7, "AA", 0.25], [2.0, 8, None, None]]
NAMES = ["delay", "hour", "carrier", "rain"]
EXPECTED = [[1.5, 2.0], [7, 8], ["AA", None], [0.25, math.nan]]
RECORDS = [dict(zip(NAMES, row, strict=True)) for row in ROWS]

ACCEPTED = {
    "split": {"dataframe_split": {"columns": NAMES, "data": ROWS}},
    "split with the usual index": {"dataframe_split": {"columns": NAMES, "data": ROWS, "index": [0, 1]}},
    "split in another order": {
        "dataframe_split": {"columns": NAMES[::-1], "data": [row[::-1] for row in ROWS]}
    },
    "records": {"dataframe_records": RECORDS},
    "instances": {"instances": RECORDS},
    "inputs as columns": {"inputs": {name: [r[name] for r in RECORDS] for name in NAMES}},
    "inputs as rows": {"inputs": RECORDS},
    "more columns than asked": {"dataframe_records": [row | {"extra": [1]} for row in RECORDS]},
    "whole numbers as floats": {"dataframe_records": [row | {"hour": float(row["hour"])} for row in RECORDS]},
}


def same(table: Table, expected: list[list[Any]]) -> bool:
    return json.dumps(table.values) == json.dumps(expected)


@pytest.mark.parametrize("form", ACCEPTED)
def test_accepts(form: str) -> None:
    table = table_from_json(parse_json(json.dumps(ACCEPTED[form]).encode()), COLUMNS)
    assert same(table, EXPECTED)
    assert table.rows == 2
    assert table.columns is COLUMNS
    frame = build_frame(table.columns, table.values, table.index)
    assert list(frame.columns) == NAMES
    assert [str(dtype) for dtype in frame.dtypes] == ["float64", "int64", "object", "float64"]


def test_csv() -> None:
    body = "hour,delay,carrier,rain,extra\n7,1.5,AA,0.25,x\n8,2,,,y\n"
    assert same(table_from_csv(body.encode(), COLUMNS), EXPECTED)


def test_nan_reads_as_missing() -> None:
    body = b'{"dataframe_records": [{"delay": 1, "hour": 2, "carrier": "AA", "rain": NaN}]}'
    assert math.isnan(table_from_json(parse_json(body), COLUMNS).values[3][0])


def test_an_optional_column_left_out_reads_as_missing() -> None:
    table = table_from_json({"inputs": {"delay": [1.0], "hour": [2], "carrier": ["AA"]}}, COLUMNS)
    assert math.isnan(table.values[3][0])
    assert table.columns is COLUMNS


def test_single_values_are_one_row() -> None:
    table = table_from_json({"inputs": {"delay": 1.0, "hour": 2, "carrier": "AA", "rain": 0.0}}, COLUMNS)
    assert table.rows == 1


def test_nameless_signatures_go_by_position() -> None:
    for document in (
        {"instances": [[1.5, 7]]},
        {"inputs": [[1.5, 7]]},
        {"dataframe_split": {"data": [[1.5, 7]]}},
    ):
        assert table_from_json(document, NAMELESS).values == [[1.5], [7]]


def test_an_index_is_kept() -> None:
    document = {"dataframe_split": {"columns": NAMES, "data": ROWS, "index": [17, 4]}}
    table = table_from_json(document, COLUMNS)
    assert list(build_frame(table.columns, table.values, table.index).index) == [17, 4]


def one(**changes: Any) -> dict[str, Any]:
    return {"dataframe_records": [{"delay": 1.5, "hour": 7, "carrier": "AA", "rain": 0.0} | changes]}


REFUSED = [
    (one(delay="1.5"), "delay", "expected double, got a string"),
    (one(delay=True), "delay", "got a boolean"),
    (one(delay=None), "delay", "missing value"),
    (one(delay=[1.5]), "delay", "got a list"),
    (one(hour=7.5), "hour", "a fraction"),
    (one(hour=None), "hour", "integers cannot be missing"),
    (one(hour=2**63), "hour", "beyond 64 bits"),
    (one(hour=1e300), "hour", "beyond 64 bits"),
    (one(carrier=3), "carrier", "expected string, got a number"),
    (one(carrier={"a": 1}), "carrier", "got an object"),
    (one(rain="wet"), "rain", "got a string"),
    ({"dataframe_records": [{"delay": 1.5, "carrier": "AA"}]}, "hour", "Missing column 'hour' (long)"),
    ({"dataframe_records": [*one()["dataframe_records"], {"hour": 1, "carrier": "AA"}]}, "delay", "row 1"),
    ({"inputs": {"delay": [1.0, 2.0], "hour": [1], "carrier": ["AA"]}}, "hour", "1 values, others have 2"),
    ({"dataframe_split": {"columns": ["hour", "hour"], "data": [[1, 2]]}}, "hour", "given twice"),
    ({"dataframe_split": {"columns": NAMES, "data": [[1.5, 7, "AA"]]}}, None, "3 values for 4 columns"),
    ({"dataframe_split": {"columns": NAMES, "data": []}}, None, "at least one row"),
    ({"dataframe_split": {"columns": NAMES, "data": [1]}}, None, "must be a list"),
    ({"dataframe_split": {"columns": "delay", "data": ROWS}}, None, "'columns' must be a list"),
    ({"dataframe_split": {"columns": [[1]], "data": [[1]]}}, None, "must be a string"),
    ({"dataframe_split": {"columns": NAMES, "data": ROWS, "index": [1]}}, None, "one label a row"),
    ({"dataframe_split": {"columns": NAMES, "data": ROWS, "orient": 1}}, None, "unknown keys: orient"),
    ({"dataframe_split": [1]}, None, "must be an object"),
    ({"dataframe_records": []}, None, "no rows"),
    ({"dataframe_records": [3]}, None, "row 0: expected an object"),
    ({"dataframe_records": {"a": 1}}, None, "must be a list of rows"),
    ({"instances": [[1.5, 7]]}, None, "have names"),
    ({"instances": 3}, None, "must be a list of rows"),
    ({"inputs": {"delay": [], "hour": [], "carrier": []}}, None, "no rows"),
    ({"inputs": {"other": [1]}}, "delay", "Missing columns"),
    ({"rows": []}, None, "exactly one of"),
    ({}, None, "exactly one of"),
    ({"inputs": [], "instances": []}, None, "exactly one of"),
]


@pytest.mark.parametrize(("document", "column", "words"), REFUSED)
def test_refuses_and_names_the_column(document: dict[str, Any], column: str | None, words: str) -> None:
    with pytest.raises(BadInput) as refusal:
        table_from_json(parse_json(json.dumps(document).encode()), COLUMNS)
    assert words in str(refusal.value)
    assert refusal.value.column == column


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON at line 1, column 1"),
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"\xff\xfe", "not"),
        (b'{"a": "\\ud800"}', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "nested too deeply"),
    ],
)
def test_refuses_what_is_no_json_object(body: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_json(body)


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"Infinity", b"-Infinity", b"1" + b"0" * 400])
def test_numbers_that_no_float_holds_name_their_column(number: bytes) -> None:
    body = b'{"inputs": {"delay": [%s], "hour": [1], "carrier": ["AA"]}}' % number
    with pytest.raises(BadInput) as refusal:
        table_from_json(parse_json(body), COLUMNS)
    assert refusal.value.column == "delay"


@pytest.mark.parametrize(
    ("csv", "column", "words"),
    [
        ("delay,hour\n1.5,7\n", "carrier", "Missing column 'carrier'"),
        ("delay,hour,carrier\nlate,7,AA\n", "delay", "got a string"),
        ("delay,hour,carrier\n1.5,7.5,AA\n", "hour", "a fraction"),
        ("delay,hour,carrier\n1.5,,AA\n", "hour", "missing"),
        ("delay,hour,carrier\n1.5,7\n", None, "2 values for 3 columns"),
        ("delay,hour,carrier,hour\n1.5,7,AA,8\n", "hour", "given twice"),
        ("delay,hour,carrier\n", None, "at least one row"),
        ('delay,hour,carrier\n"1.5,7,AA', None, "not CSV"),
        ("delay,hour,carrier\ninf,7,AA\n", "delay", "does not fit"),
    ],
)
def test_refuses_csv(csv: str, column: str | None, words: str) -> None:
    with pytest.raises(BadInput) as refusal:
        table_from_csv(csv.encode(), COLUMNS)
    assert words in str(refusal.value)
    assert refusal.value.column == column


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("float", [1.5, 3], [1e300]),
        ("integer", [1, -5], [2**31]),
        ("boolean", [True, False], [1]),
        ("binary", ["aGVsbG8="], ["not base64!"]),
        ("datetime", ["2013-07-01T10:00:00", "2013-07-01"], ["yesterday-ish"]),
        ("datetime", ["2013-07-01"], ["2013-07-01T10:00:00+02:00"]),
        ("datetime", ["2013-07-01"], ["9999-01-01"]),
    ],
)
def test_other_types(kind: str, good: list[Any], bad: list[Any]) -> None:
    column = Column("x", kind, required=True, may_miss=True)
    array = column.array(column.check(good))
    assert len(array) == len(good)
    with pytest.raises(BadInput, match="Column 'x', row 0"):
        column.check(bad)


def test_values_are_never_quoted_in_a_refusal() -> None:
    with pytest.raises(BadInput) as refusal:
        table_from_json(one(delay="123-45-6789"), COLUMNS)
    assert "6789" not in str(refusal.value)


@pytest.mark.parametrize(
    "good", ["application/json", "Application/JSON; charset=utf-8", 'application/json;charset="UTF-8"']
)
def test_content_types(good: str) -> None:
    assert content_kind(good) == "json"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "text/csv; header=no",
    ],
)
def test_other_content_types_are_415(bad: str) -> None:
    with pytest.raises(UnsupportedType):
        content_kind(bad)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NAMES),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*NAMES, "columns", "data", "index", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)
documents = st.dictionaries(
    st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"]),
    json_values,
    max_size=2,
)
splits = st.fixed_dictionaries({"columns": json_values, "data": json_values}, optional={"index": json_values})


@settings(deadline=None)
@given(
    documents | st.builds(lambda split: {"dataframe_split": split}, splits),
    st.sampled_from([COLUMNS, NAMELESS]),
)
def test_any_document_is_a_frame_or_a_400(document: dict[str, Any], columns: tuple[Column, ...]) -> None:
    try:
        table = table_from_json(parse_json(json.dumps(document).encode()), columns)
    except BadInput:
        return
    frame = build_frame(table.columns, table.values, table.index)
    assert len(frame) == table.rows >= 1


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_400(body: bytes) -> None:
    for read in (parse_json, lambda body: table_from_csv(body, COLUMNS)):
        with contextlib.suppress(BadInput):
            read(body)
