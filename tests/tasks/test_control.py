"""What people ask of a release from a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import Refused
from serving.records import ReleaseRow, ReleaseState, Stage
from tasks import control
from tasks.bench import Bench
from tests.tasks.test_transitions import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    made.first_champion()
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    monkeypatch.setattr(Bench, "rescue", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    return made


def in_stage(world: World, stage: Stage) -> ReleaseRow:
    release, _ = world.ramping("2")
    bench = world.bench()
    return bench.journal.update_release(release.id, release.owner, now=bench.clock(), stage=stage.value)


def asked(world: World) -> ReleaseRow:
    found = world.journal.open_release("flights")
    assert found is not None
    return found


def test_pause_says_what_it_does_in_each_stage(world: World) -> None:
    in_stage(world, Stage.CANARY)
    said = control.pause(world.bench().settings, "flights")
    assert said.endswith("holds at its present share; watching goes on")
    world.journal.ask(asked(world).id, "")
    in_stage(world, Stage.SHADOW)
    said = control.pause(world.bench().settings, "flights")
    assert said.endswith("is in stage shadow; it holds before its first share")


def test_nothing_that_does_not_run_is_paused(world: World) -> None:
    release = in_stage(world, Stage.CANARY)
    world.journal.end_release(release.id, state=ReleaseState.INTERRUPTED, reason="killed", now=1.0)
    with pytest.raises(Refused, match=r"INTERRUPTED at share 0.*Next: interlock resume"):
        control.pause(world.bench().settings, "flights")
    assert asked(world).request == ""


def test_an_abort_outlives_pause_and_resume(world: World) -> None:
    in_stage(world, Stage.CANARY)
    settings = world.bench().settings
    assert "was asked to end" in control.abort(settings, "flights", who="me")
    for ask in (control.pause, control.resume):
        with pytest.raises(Refused, match="was asked to end before; that stands"):
            ask(settings, "flights")
    assert asked(world).request == "abort"


def test_a_paused_release_can_still_be_aborted(world: World) -> None:
    in_stage(world, Stage.CANARY)
    settings = world.bench().settings
    control.pause(settings, "flights")
    control.abort(settings, "flights", who="me")
    assert asked(world).request == "abort"
