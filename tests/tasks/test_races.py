"""Sequences that a review found: each once promoted something unproven or lost a rollback."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.endpoint import Slot
from serving.errors import Fenced, NotHealthy, Refused, TransientError
from serving.records import ReleaseState
from tasks import changes, rolling_back, transitions
from tests.tasks.test_transitions import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.first_champion()
    return made


class Away(TransientError):
    """MLflow does not answer."""


def mlflow_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise Away("MLflow is down")

    for verb in ("point", "unpoint", "tag"):
        monkeypatch.setattr(world.registry, verb, away)


def test_a_person_rolls_back_a_promotion_that_mlflow_has_not_heard_of(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = world.ramping()
    with monkeypatch.context() as patched:
        mlflow_away(world, patched)
        with pytest.raises(Away):
            transitions.promote(world.bench(), release, who="flow", reason="good")
        assert world.serving() == ("2", 0)
        report = rolling_back.roll_back(world.bench(), who="a person", reason="looks wrong")
        assert world.serving() == ("1", 0)
        assert (report.was, report.now) == ("2", "1")
        assert "reconcile" in report.pending
    changes.finish(world.bench())
    assert world.registry.aliases == {"champion": "1"}
    world.consistent()
    ended = world.journal.release(release.id)
    assert ended is not None
    assert ended.state is ReleaseState.ROLLED_BACK


def test_a_candidate_that_died_is_not_promoted(world: World) -> None:
    release, _ = world.ramping()
    world.endpoint._held.pop(Slot.GREEN)
    with pytest.raises(NotHealthy):
        transitions.promote(world.bench(), release, who="flow", reason="good")
    row = world.bench().row()
    assert (row.champion, row.intent) == ("1", None)


def test_a_promotion_that_the_platform_refuses_stands_down(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = world.ramping()
    monkeypatch.setattr(transitions, "check_alive", lambda *_: None)
    world.endpoint._held.pop(Slot.GREEN)
    with pytest.raises(Refused, match="what served before"):
        transitions.promote(world.bench(), release, who="flow", reason="good")
    assert world.serving() == ("1", 0)
    row = world.bench().row()
    assert (row.champion, row.intent) == ("1", None)
    ended = world.journal.release(release.id)
    assert ended is not None
    assert ended.state is ReleaseState.INTERRUPTED


def test_a_version_deleted_in_the_registry_does_not_hold_its_rejection_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, _ = world.ramping()

    def gone(*_: object) -> None:
        raise Refused("no such version")

    monkeypatch.setattr(world.registry, "tag", gone)
    transitions.reject(
        world.bench(), release, state=ReleaseState.REJECTED, who="flow", reason="bad", at=world.clock.now
    )
    assert world.serving() == ("1", 0)
    assert world.bench().row().intent is None
    assert any(line.what == "not published" for line in world.journal.audit("flights"))


def test_a_flow_that_slept_through_make_safe_promotes_nothing(world: World) -> None:
    release, _ = world.ramping()
    transitions.make_safe(world.bench(), release, who="make-safe", reason="silent")
    with pytest.raises(Fenced):
        transitions.promote(world.bench(), release, who="flow", reason="good")
    with pytest.raises(Fenced):
        transitions.reject(
            world.bench(), release, state=ReleaseState.REJECTED, who="flow", reason="bad", at=world.clock.now
        )
    assert world.serving() == ("1", 0)


def test_a_flow_that_slept_through_a_rollback_by_hand_promotes_nothing(world: World) -> None:
    release, _ = world.ramping()
    rolling_back.roll_back(world.bench(), who="a person", reason="looks wrong")
    with pytest.raises(Fenced):
        transitions.promote(world.bench(), release, who="flow", reason="good")
    assert world.serving() == ("1", 0)
    world.consistent()


def test_a_version_judged_against_another_champion_is_not_placed(world: World) -> None:
    second, _ = world.ramping("2")
    transitions.promote(world.bench(), second, who="flow", reason="good")
    third = world.release("3")
    rolling_back.roll_back(world.bench(), who="a person", reason="complaints")
    assert world.serving() == ("1", 0)
    with pytest.raises(Fenced, match="judged against"):
        transitions.place(world.bench(), third, first=False)


def test_make_safe_leaves_a_release_alone_that_somebody_claimed_since(world: World) -> None:
    release, _ = world.ramping()
    transitions.make_safe(world.bench(), release, who="make-safe", reason="silent")
    world.journal.claim(release.id, "next", lease_s=30, now=world.clock.now, flow_run_id="run-2")
    transitions.make_safe(world.bench(), release, who="make-safe", reason="silent, seen late")
    found = world.journal.release(release.id)
    assert found is not None
    assert (found.state, found.owner) == (ReleaseState.RUNNING, "next")


def test_an_abort_that_nobody_heard_outlives_the_interruption(world: World) -> None:
    release, _ = world.ramping()
    rolling_back.abort(world.bench(), who="a person")
    transitions.make_safe(world.bench(), release, who="make-safe", reason="its flow died")
    found = world.journal.release(release.id)
    assert found is not None
    assert (found.state, found.request) == (ReleaseState.INTERRUPTED, "abort")


def test_a_rollback_tries_again_when_the_endpoint_moved_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.ramping()
    original, calls = transitions.reject, [0]

    def raced(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == 1:
            raise Fenced("somebody was quicker")
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(transitions, "reject", raced)
    report = rolling_back.roll_back(world.bench(), who="a person", reason="looks wrong")
    assert (report.was, report.now, calls[0]) == ("2", "1", 2)
    assert world.serving() == ("1", 0)
