"""A candidate that starts while it is evaluated: what is gained, and what a failed evaluation leaves."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.release import release_model
from serving.errors import NotHealthy
from serving.records import ReleaseState
from tasks import early_start
from tasks.bench import Bench
from tasks.release import open_release
from tests.flows.world import Version, World

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

_WAIT_S = 30


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An endpoint whose champion is version 1, and whose candidates start early."""
    made = World(tmp_path)
    replicas = made.policy.replicas.model_copy(update={"start_early": True})
    made.policy = made.policy.model_copy(update={"replicas": replicas})
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    assert run("1").name == "Promoted"
    made.clock.now += 60
    return made


def run(version: str) -> State:
    return release_model("flights", int(version), return_state=True)


def words(world: World) -> list[str]:
    """What the trail says of version 2's release, oldest first."""
    return [line.what for line in reversed(world.journal.audit()) if line.release_id == "flights-v2-1"]


def test_the_candidate_stands_before_its_evaluation_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("2", Version())
    stands, deploy, load = threading.Event(), world.endpoint.deploy, world.runs.load_model

    def deployed(*args: Any, **named: Any) -> None:
        deploy(*args, **named)
        stands.set()

    def loads_once_it_stands(uri: str) -> Any:
        assert stands.wait(_WAIT_S)
        return load(uri)

    monkeypatch.setattr(world.endpoint, "deploy", deployed)
    monkeypatch.setattr(world.runs, "load_model", loads_once_it_stands)
    assert run("2").name == "Promoted"
    assert world.serving() == ("2", 0)
    assert words(world).index("started early") < words(world).index("stage stage")


def test_the_first_champion_stands_in_no_slot_before_it_has_passed(world: World) -> None:
    firsts = [line.what for line in world.journal.audit() if line.release_id == "flights-v1-1"]
    assert "placed" in firsts
    assert "started early" not in firsts


def test_a_version_that_fails_the_evaluation_leaves_its_slot_and_answers_nothing(world: World) -> None:
    world.add("2", Version(skill=0.1))
    assert run("2").name == "Rejected"
    assert "started early" in words(world)
    assert world.newest().decided_stage == "evaluate"
    assert world.slots() == ("1", "")
    assert "2" not in world.asked
    assert world.serving() == ("1", 0)


def test_a_release_that_ends_waits_for_the_start_and_leaves_nothing_half_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("2", Version())
    deploy, failed = world.endpoint.deploy, threading.Event()

    def slow(*args: Any, **named: Any) -> None:
        assert failed.wait(_WAIT_S)
        deploy(*args, **named)

    def unreadable(_uri: str) -> Any:
        failed.set()
        raise RuntimeError("the weights cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(world.endpoint, "deploy", slow)
        patched.setattr(world.runs, "load_model", unreadable)
        state = run("2")
    assert state.name == "Interrupted"
    assert words(world).index("started early") < len(words(world)) - 1, "what ends the release comes after it"
    assert world.serving() == ("1", 0)
    assert run("2").name == "Promoted"


def test_a_start_that_failed_early_is_tried_again_in_its_turn(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.add("2", Version())
    deploy, tries = world.endpoint.deploy, []

    def fails_once(*args: Any, **named: Any) -> None:
        tries.append(args)
        if len(tries) == 1:
            raise NotHealthy("no memory was left")
        deploy(*args, **named)

    monkeypatch.setattr(world.endpoint, "deploy", fails_once)
    monkeypatch.setattr(early_start._LOG, "propagate", True)
    assert run("2").name == "Promoted"
    assert len(tries) == 2
    assert "no head start, version 2: no memory was left" in caplog.text


def test_a_version_that_cannot_start_rejects_nothing(world: World) -> None:
    world.add("2", Version())
    world.endpoint.break_start("2")
    assert run("2").name == "Interrupted"
    assert world.newest().state is ReleaseState.INTERRUPTED
    assert world.serving() == ("1", 0)


def test_a_process_that_is_told_to_end_does_not_wait_for_the_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stops a flow run kills it if it does not end within seconds; a start may take minutes."""
    world.add("2", Version())
    bench = world.bench()
    release = open_release(bench, "2", again=False, reason="", flow_run_id="told", owner="me")
    starts, may_go_on = threading.Event(), threading.Event()
    deploy = world.endpoint.deploy

    def slow(*args: Any, **named: Any) -> None:
        starts.set()
        assert may_go_on.wait(_WAIT_S)
        deploy(*args, **named)

    monkeypatch.setattr(world.endpoint, "deploy", slow)

    def is_told_to_end() -> None:
        with early_start.starting_early(release):
            assert starts.wait(_WAIT_S)
            raise KeyboardInterrupt  # as Prefect's TerminationSignal is, no Exception

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        is_told_to_end()
    assert time.monotonic() - began < _WAIT_S
    may_go_on.set()
    (thread,) = [one for one in threading.enumerate() if one.name == f"start-{release.row.id}"]
    thread.join(_WAIT_S)
    assert not thread.is_alive()
