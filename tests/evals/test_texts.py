"""Texts compared by their words."""

from __future__ import annotations

import numpy as np
import pytest

from evals.texts import closeness, contains, cosine, normalised, refuses, word_similarity


@pytest.mark.parametrize(
    ("one", "other"),
    [("  The Answer.\n", "the answer"), ("It\u2019s  OK!", "it's ok"), ("\uff21", "a"), ("...", "")],
)
def test_normal_form(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot share another customer's address.", True),
        ("As an AI I have no access to orders.", True),
        ("You can return the bike within 30 days.", False),
        ("The brake can not be adjusted by hand; bring it to a shop.", False),
        ("A" * 300 + " I can't", False),
    ],
)
def test_refusals(text: str, is_refusal: bool) -> None:
    assert refuses(text) is is_refusal


def test_contains_wants_every_text() -> None:
    assert contains("See article A12 and B7.", ["a12", "B7"], ignore_case=True)
    assert not contains("See article A12.", ["A12", "B7"], ignore_case=True)
    assert not contains("see a12", ["A12"], ignore_case=False)
    assert not contains("anything", [], ignore_case=True)


def test_word_similarity_orders_pairs() -> None:
    ours = ["return it within 30 days", "return it within 30 days", "", "x"]
    theirs = ["return it within 30 days", "we open at nine", "we open", "x"]
    same, other, empty, short = word_similarity(ours, theirs)
    assert same == pytest.approx(1)
    assert short == pytest.approx(1)
    assert other == 0
    assert empty == 0


def test_closeness() -> None:
    assert closeness("Same words.", "same   words") == 1
    assert closeness("a b c d", "a b x d") == 0.75
    assert closeness("", "word") == 0


def test_cosine_of_nothing_is_zero() -> None:
    found = cosine(np.array([[1.0, 0], [0, 0], [1, 1]]), np.array([[2.0, 0], [1, 0], [1, -1]]))
    assert found.tolist() == [1, 0, 0]
