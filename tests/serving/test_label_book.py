"""Labels in the journal's database, in each kind that it may be."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

import pytest

from serving.labels import Label, LabelBook


@pytest.fixture
def book(journal_url: str) -> Generator[LabelBook]:
    with closing(LabelBook(journal_url)) as made:
        yield made


def label(request_id: str, *, score: float | None = 1.0, time: float = 100.0, row: int = 0) -> Label:
    return Label("flights", request_id, row, "1.0", score, "2", f"user-{request_id}", time, time + 50)


def test_the_first_label_of_a_row_stands_and_numbers_follow_the_order(book: LabelBook) -> None:
    assert book.add([label("a"), label("b", score=0.0)]) == 2
    assert book.add([label("a", score=0.5), label("c", score=None), label("a", row=1)]) == 2
    assert book.known("flights", ["a", "b", "z"]) == {("a", 0): "1.0", ("a", 1): "1.0", ("b", 0): "1.0"}
    scores, newest = book.scores_after("flights", 0, version="2", limit=10)
    assert (scores, newest) == ([1.0, 0.0, 1.0], book.newest("flights"))
    assert book.scores_by_request("flights", 0, newest) == {"a": 1.0, "b": 0.0}


def test_performance_is_a_mean_by_interval(book: LabelBook) -> None:
    book.add([label("a", time=130), label("b", time=170, score=0.0), label("c", time=250)])
    told = book.performance("flights", bucket_s=100.0)
    assert [(one.starts_at, one.labels, one.score, one.delay_s) for one in told] == [
        (100.0, 2, 0.5, 50.0),
        (200.0, 1, 1.0, 50.0),
    ]
    assert len(book.performance("flights", bucket_s=100.0, stored_after=book.newest("flights"))) == 0
    assert book.scores_between("flights", version="2", since=130, until=250) == [1.0, 0.0]
    assert [one.request_id for one in book.recent("flights", version="2", since=0, limit=2)] == ["c", "b"]


def test_what_is_forgotten_is_gone_and_its_number_never_given_again(book: LabelBook) -> None:
    book.add([label("a"), label("b"), label("c", time=10)])
    newest = book.newest("flights")
    assert book.forget("flights", "user-b") == 1
    assert book.purge("flights", before=50) == 1
    assert book.known("flights", ["a", "b", "c"]) == {("a", 0): "1.0"}
    book.add([label("d")])
    assert book.newest("flights") > newest
