"""Who may approve what: one no is a no, a yes counts once a person, registrants never alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.approval import Answer, judge_answers, person
from evals.verdict import Outcome


def yes(name: str) -> Answer:
    return Answer(True, name, "fine")


def no(name: str) -> Answer:
    return Answer(False, name, "not today")


@pytest.mark.parametrize(
    ("answers", "registrants", "least", "outcome"),
    [
        ([], [], 1, Outcome.INCONCLUSIVE),
        ([yes("ann")], [], 1, Outcome.PASS),
        ([yes("ann")], ["bob"], 1, Outcome.PASS),
        ([yes("ann")], ["ann"], 1, Outcome.INCONCLUSIVE),
        ([yes("Ann@laptop")], ["ann@example.com"], 1, Outcome.INCONCLUSIVE),
        ([yes("ann"), yes("bob")], ["ann"], 1, Outcome.PASS),
        ([yes("ann")], [], 2, Outcome.INCONCLUSIVE),
        ([yes("ann"), yes("ann@elsewhere")], [], 2, Outcome.INCONCLUSIVE),
        ([yes("ann"), yes("bob")], [], 2, Outcome.PASS),
        ([yes("ann"), yes("bob")], ["ann"], 2, Outcome.PASS),
        ([yes("ann"), yes("bob")], ["ann", "bob"], 2, Outcome.INCONCLUSIVE),
        ([yes("ann"), no("bob")], [], 1, Outcome.FAIL),
        ([no("ann")], ["ann"], 2, Outcome.FAIL),
        ([yes("  ")], [], 1, Outcome.INCONCLUSIVE),
    ],
)
def test_table(answers: list[Answer], registrants: list[str], least: int, outcome: Outcome) -> None:
    verdict = judge_answers(answers, registrants=registrants, approvers_min=least)
    assert verdict.outcome is outcome


def test_it_says_for_whom_it_waits() -> None:
    waits = judge_answers([yes("ann")], registrants=["ann"], approvers_min=1)
    assert waits.reason == (
        "waits for the approval of 1 more person beside ann, not only of ann, who registered the version"
    )
    assert "2 people" in judge_answers([], registrants=[], approvers_min=2).reason
    assert "1 more person" in judge_answers([yes("ann")], registrants=[], approvers_min=2).reason


names = st.sampled_from(["ann", "Ann@host", "bob", "bob@x", "cleo", "", " "])


@given(
    st.lists(st.builds(Answer, st.booleans(), names, st.just("r"))),
    st.lists(names),
    st.sampled_from([1, 2]),
)
def test_never_without_enough_different_people(
    answers: list[Answer], registrants: list[str], least: int
) -> None:
    verdict = judge_answers(answers, registrants=registrants, approvers_min=least)
    people = {person(answer.name) for answer in answers if answer.is_yes} - {""}
    enough = len(people) >= least and bool(people - {person(name) for name in registrants})
    assert verdict.passed == (enough and all(answer.is_yes for answer in answers))
    assert verdict.failed == any(not answer.is_yes for answer in answers)
