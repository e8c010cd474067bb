"""The decision table, row by row, and k of m windows. No data is read and nothing is measured here."""

from __future__ import annotations

from itertools import product

import pytest

from configs.drift import Drift
from evals.drift import Check, Compared, Question
from evals.drift_decision import (
    Action,
    Harm,
    PastWindow,
    Situation,
    decide,
    inconclusive,
    judge,
)
from evals.verdict import Outcome

DAY = 86_400.0
NOTHING, LOG, HOLD, ALERT = Action.NOTHING, Action.LOG, Action.HOLD, Action.ALERT
RETRAIN, ROLL_BACK = Action.RETRAIN, Action.ROLL_BACK

DRIFTS = list(product((False, True), repeat=2))
# inputs, outputs, harm -> with a recent release, without one: evidence.md's table
TABLE = [
    (False, False, Harm.NONE, {NOTHING}, {NOTHING}),
    (False, False, Harm.UNKNOWN, {NOTHING}, {NOTHING}),
    (True, False, Harm.NONE, {LOG}, {LOG}),
    (True, False, Harm.UNKNOWN, {LOG}, {LOG}),
    (False, True, Harm.UNKNOWN, {HOLD, ALERT}, {ALERT}),
    (False, True, Harm.NONE, {LOG}, {LOG}),
    (True, True, Harm.UNKNOWN, {HOLD, ALERT}, {ALERT, RETRAIN}),
    (True, True, Harm.NONE, {LOG}, {LOG}),
    *((i, o, Harm.NEW_VERSION_ONLY, {ROLL_BACK, ALERT}, {ROLL_BACK, ALERT}) for i, o in DRIFTS),
    *((i, o, Harm.BOTH, {HOLD, ALERT}, {ALERT, RETRAIN}) for i, o in DRIFTS),
    *((i, o, Harm.NOT_COMPARED, {HOLD, ALERT}, {ALERT}) for i, o in DRIFTS),
]


@pytest.mark.parametrize(("inputs", "outputs", "harm", "recent", "otherwise"), TABLE)
def test_every_row(inputs: bool, outputs: bool, harm: Harm, recent: set, otherwise: set) -> None:
    for is_recent, actions in ((True, recent), (False, otherwise)):
        situation = Situation(inputs=inputs, outputs=outputs, harm=harm, recent=is_recent)
        assert set(decide(situation).actions) == actions


@pytest.mark.parametrize(("inputs", "outputs", "harm"), list(product((False, True), (False, True), Harm)))
def test_broken_data_is_mended_upstream_unless_the_release_broke_it(
    inputs: bool, outputs: bool, harm: Harm
) -> None:
    if harm is Harm.NEW_VERSION_ONLY:
        return
    base = {"inputs": inputs, "outputs": outputs, "harm": harm, "broken": True}
    assert set(decide(Situation(**base, recent=True)).actions) == {HOLD, ALERT}
    assert set(decide(Situation(**base, recent=True, features_changed=True)).actions) == {ROLL_BACK, ALERT}
    assert set(decide(Situation(**base, features_changed=True)).actions) == {ALERT}


def test_sustained_input_drift_asks_for_a_version_once() -> None:
    sustained = Situation(inputs=True, sustained=True)
    assert set(decide(sustained).actions) == {LOG, RETRAIN}
    assert set(decide(Situation(inputs=True, sustained=True, retrain_asked=True)).actions) == {LOG}
    assert set(decide(Situation(inputs=True, sustained=True, recent=True)).actions) == {LOG}


def test_the_output_budget_rolls_back_only_against_the_old_version_and_without_input_drift() -> None:
    def actions(**more: bool) -> set[Action]:
        return set(decide(Situation(outputs=True, outputs_differ=True, **more)).actions)

    assert actions(recent=True) == {ROLL_BACK, ALERT}
    assert actions(recent=True, inputs=True) == {HOLD, ALERT}
    assert ROLL_BACK not in actions()


def test_drift_alone_never_rolls_back() -> None:
    """Over the whole table: without concurrent evidence or changed feature code, traffic stays."""
    flags = ("inputs", "outputs", "broken", "recent", "sustained", "retrain_asked")
    for values in product((False, True), repeat=len(flags)):
        for harm in set(Harm) - {Harm.NEW_VERSION_ONLY}:
            decision = decide(Situation(**dict(zip(flags, values, strict=True)), harm=harm))
            assert ROLL_BACK not in decision.actions
            assert decision.why
            assert ALERT not in decision.actions or decision.next_step, "an alert says what to do next"


# -- windows ------------------------------------------------------------------------------------------


def flagged(question: Question, column: str = "temp", **more) -> Check:
    return Check(question, column, "distance", 0.5, 0.1, 5000, 1e-9, flagged=True, **more)


def compared(*checks: Check) -> Compared:
    return Compared(tuple(checks), 5000, 5000)


def past(days: float, *checks: Check, **more) -> PastWindow:
    keys = frozenset(check.key for check in checks)
    values = {"version": "3", "reference": "training v3", "flagged": keys}
    return PastWindow(ends_at=10 * DAY - days * DAY, **(values | more))


def judged(checks: Compared, *history: PastWindow, policy: Drift | None = None, **more):
    values = {"ends_at": 10 * DAY, "version": "3", "reference": "training v3"}
    return judge(policy or Drift(k=2, m=3), checks, history, **(values | more))


INPUT, OUTPUT = flagged(Question.INPUT), flagged(Question.OUTPUT, "prediction")


def test_one_window_alarms_nobody_and_k_of_m_do() -> None:
    first = judged(compared(INPUT))
    assert (first.outcome, first.alarms) == (Outcome.PASS, ())
    assert first.flagged == (INPUT,)
    assert "none in 2 of the last 3" in first.reason
    second = judged(compared(INPUT), past(1), past(2, INPUT))
    assert (second.outcome, second.alarms) == (Outcome.FAIL, (INPUT,))


@pytest.mark.parametrize(
    "before",
    [
        past(3, INPUT),
        past(1, flagged(Question.INPUT, "wind")),
        past(1, flagged(Question.INPUT, part="origin=JFK")),
        past(1, INPUT, reference="training v2"),
        past(0, INPUT),
        past(-1, INPUT),
    ],
    ids=["too old", "another column", "another slice", "another reference", "this window", "later"],
)
def test_what_does_not_count_towards_k(before: PastWindow) -> None:
    assert judged(compared(INPUT), before).alarms == ()


def test_answers_count_by_version_and_inputs_do_not() -> None:
    """After a promotion the answers may differ; the inputs are the same users'."""
    assert judged(compared(OUTPUT), past(1, OUTPUT, version="2")).alarms == ()
    assert judged(compared(OUTPUT), past(1, OUTPUT)).alarms == (OUTPUT,)
    assert judged(compared(INPUT), past(1, INPUT, version="2")).alarms == (INPUT,)


def test_broken_data_alarms_at_once() -> None:
    verdict = judged(compared(flagged(Question.SCHEMA)))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.decision.row == "broken"


def test_sustained_needs_all_windows() -> None:
    assert Action.RETRAIN in judged(compared(INPUT), past(1, INPUT), past(2, INPUT)).decision.actions
    assert Action.RETRAIN not in judged(compared(INPUT), past(1, INPUT), past(2)).decision.actions
    assert Action.RETRAIN not in judged(compared(INPUT), past(1, INPUT)).decision.actions


def test_retraining_is_not_asked_for_again_too_soon() -> None:
    asked = past(2, INPUT, retrain_asked=True)
    assert Action.RETRAIN not in judged(compared(INPUT), past(1, INPUT), asked).decision.actions
    soon = Drift(k=2, m=3, retrain_again_s=DAY)
    assert Action.RETRAIN in judged(compared(INPUT), past(1, INPUT), asked, policy=soon).decision.actions


def test_harm_fails_even_where_nothing_drifted() -> None:
    verdict = judged(compared(), harm=Harm.BOTH)
    assert (verdict.outcome, verdict.decision.row) == (Outcome.FAIL, "harm, both versions")


def test_no_data_is_inconclusive_and_never_passes() -> None:
    verdict = inconclusive("12 rows", rows=12)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.decision.actions == (LOG,)
    assert verdict.as_dict()["rows"] == 12
