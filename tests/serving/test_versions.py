"""Versions as one text."""

from __future__ import annotations

import pytest

from serving.versions import Pair, model_uri


@pytest.mark.parametrize(
    ("text", "pair"),
    [("3", Pair("3")), ("3+p12", Pair("3", "12")), ("p2", Pair("", "2"))],
)
def test_a_version_is_one_text_both_ways(text: str, pair: Pair) -> None:
    assert Pair.read(text) == pair
    assert str(pair) == text


@pytest.mark.parametrize("text", ["", "0", "3p2", "+p2", "3+", "3+p0", "v3", "3+p2+p3", "latest"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no version"):
        Pair.read(text)


def test_only_the_model_of_a_pair_has_weights() -> None:
    assert model_uri("bot", "3+p2") == model_uri("bot", "3") == "models:/bot/3"
    assert Pair.of("") == Pair("")
