"""Redaction keeps nothing that it was told to drop, in any form the protocol allows."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.capture.redact import Redaction

SECRET = "tattletale"
REDACTION = Redaction.of(["ssn"], ["email"], b"key")
JSON = "application/json"

FORMS = {
    "records": {"dataframe_records": [{"age": 3, "ssn": SECRET, "email": SECRET}]},
    "split": {"dataframe_split": {"columns": ["age", "ssn", "email"], "data": [[3, SECRET, SECRET]]}},
    "instances": {"instances": [{"age": 3, "ssn": SECRET, "email": SECRET}]},
    "inputs": {"inputs": {"age": [3], "ssn": [SECRET], "email": [SECRET]}},
    "nested": {"inputs": [{"person": {"age": 3, "ssn": SECRET, "email": SECRET}}]},
}


@pytest.mark.parametrize("form", FORMS)
def test_drops_and_hashes_in_every_form(form: str) -> None:
    kept = REDACTION.request(json.dumps(FORMS[form]).encode(), JSON)
    assert kept is not None
    assert SECRET not in kept
    assert "ssn" not in kept
    assert REDACTION.digest("email", SECRET) in kept
    assert '"age"' in kept


def test_csv() -> None:
    kept = REDACTION.request(f"age,ssn,email\n3,{SECRET},{SECRET}\n".encode(), "text/csv; charset=utf-8")
    assert kept == f"age,email\n3,{REDACTION.digest('email', SECRET)}\n"


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[3, "tattletale"]]}',
        b'{"inputs": ["tattletale"]}',
        b'{"dataframe_split": {"data": [["tattletale"]]}}',
        b'{"dataframe_split": {"columns": ["age", "ssn"], "data": [[3]]}}',
        b'{"dataframe_records": [["tattletale"]]}',
        b'{"ssn": "tattletale"',
        b"[1]",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_withholds_what_it_cannot_understand(body: bytes) -> None:
    assert REDACTION.request(body, JSON) is None


def test_error_answers_are_withheld_because_they_may_quote() -> None:
    assert REDACTION.response(b'{"message": "tattletale is no number"}', 400) is None
    assert (
        REDACTION.response(b'{"predictions": [{"ssn": "tattletale", "p": 1}]}', 200)
        == '{"predictions":[{"p":1}]}'
    )


def test_equal_values_of_two_columns_have_different_digests() -> None:
    assert REDACTION.digest("a", SECRET) != REDACTION.digest("b", SECRET)
    assert REDACTION.digest("a", SECRET) == REDACTION.digest("a", SECRET)


def test_hashing_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="hmac_key_file"):
        Redaction.of([], ["email"], b"")


def test_without_redaction_the_text_is_kept_as_it_came() -> None:
    assert Redaction().request(b'{"a": NaN ', JSON) == '{"a": NaN '
    assert Redaction().request(b"\xff", JSON) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["ssn", "email", "x"]), inner)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(json_values)
def test_never_raises_and_never_keeps_a_dropped_key(value: object) -> None:
    for document in (value, {"inputs": value}, {"dataframe_split": {"columns": value, "data": value}}):
        kept = REDACTION.request(json.dumps(document).encode(), JSON)
        assert kept is None or '"ssn":' not in kept
