# pyright: basic
"""The human gate in the release flow: answered, killed, suspended, aborted, and nobody there.

Prefect is real (a paused run in this process, answered through its REST API) but where a test
needs a death at an exact place: there only Prefect's own wait is replaced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.settings import PREFECT_API_URL
from prefect.states import Suspended
from prefect.testing.utilities import prefect_test_harness

from configs.approval import Approval
from configs.settings import Settings
from flows.release import release_model
from serving.errors import Refused, TransientError
from serving.records import ReleaseState
from tasks import approving, rolling_back, sweeping, waiting
from tasks.bench import Bench
from tests.flows.world import Version, World
from tests.tasks.doubles import Killed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An endpoint whose champion is version 1, and whose next release must be approved."""
    made = World(tmp_path)
    made.settings = Settings(state_dir=made.settings.state_dir, prefect_api_url=PREFECT_API_URL.value())
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    monkeypatch.setattr(Bench, "rescue", classmethod(lambda _cls, _name, _settings: made.bench()))
    made.add("1", Version(skill=0.8))
    assert run().name == "Promoted"
    made.clock.now += 60
    made.add("2", Version(skill=1.0))
    ask(made)
    return made


def ask(world: World, **wanted: Any) -> None:
    """Let the policy want an approval."""
    approval = Approval(**{"required": True, "timeout_s": 3600, **wanted})
    world.policy = world.policy.model_copy(update={"approval": approval})


def run(version: int = 1, **parameters: Any) -> State:
    """Run the release flow to its final state."""
    return release_model("flights", version, return_state=True, **parameters)


class Said:
    """Answers in their turn in place of Prefect's wait; an exception is raised instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *turns: Any) -> None:
        self.turns = list(turns)
        self.asked: list[str] = []
        self.forms: list[str] = []
        monkeypatch.setattr(approving, "_await_answer", self._await)

    def _await(self, form: Any, *, key: str, timeout_s: int) -> Any:
        assert timeout_s >= 1
        self.asked.append(key)
        self.forms.append(form._description)
        turn = self.turns.pop(0)
        if isinstance(turn, BaseException):
            raise turn
        return form(decision=turn[0], name=turn[1], reason=turn[2])


def suspended() -> Pause:
    return Pause(state=Suspended(timeout_seconds=60))


def in_background(world: World, act: Callable[[], object]) -> threading.Thread:
    """Do something once the run really waits in Prefect."""

    def wait_and_act() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            release = world.newest()
            if release.version == "2" and release.progress.get("until"):
                try:
                    act()
                except (Refused, TransientError):  # the question stands a moment before the run is paused
                    time.sleep(0.5)
                    continue
                return
            time.sleep(0.2)

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def say(world: World, *, is_yes: bool, who: str) -> Callable[[], object]:
    return lambda: waiting.answer(world.settings, "flights", is_yes=is_yes, who=who, reason="read it all")


def test_a_paused_run_goes_on_with_a_yes_through_the_rest_api(world: World) -> None:
    answering = in_background(world, say(world, is_yes=True, who="ann@desk"))
    assert run(2).name == "Promoted"
    answering.join()
    ended = world.newest()
    assert ended.verdicts["approve"]["reason"] == "approved by ann@desk: read it all"
    line = next(line for line in world.journal.audit("flights", limit=500) if line.what == waiting.APPROVED)
    assert (line.who, line.details["reason"]) == ("ann@desk", "read it all")
    assert world.runs.tags["interlock.approval"] == "approved by ann@desk: read it all"
    assert world.registry.tags["2"]["interlock.flights.approval"] == "approved by ann@desk: read it all"
    told = [alert.what for alert in world.messenger.sent]
    assert any("waits for the approval of 1 person" in what for what in told)
    assert any("approved by ann@desk" in what for what in told)


def test_a_no_rejects_before_any_user_saw_it(world: World) -> None:
    answering = in_background(world, say(world, is_yes=False, who="bob"))
    state = run(2)
    answering.join()
    assert (state.name, world.serving()) == ("Rejected", ("1", 0))
    assert world.newest().reason == "rejected by bob: read it all"
    frame = world.endpoint.observations("0").frame
    assert set(frame["version"]) == {"1"}
    assert run(2).name == "Refused"
    assert run(2, again=True, reason="").name == "Refused"


def test_an_abort_while_it_waits_ends_the_run_too(world: World) -> None:
    def abort() -> None:
        rolling_back.abort(world.bench(), who="ann")

    ending = in_background(world, abort)
    began = time.monotonic()
    state = run(2)
    ending.join()
    assert state.name == "Aborted"
    assert world.newest().state is ReleaseState.ABORTED
    assert time.monotonic() - began < 1800, "not the policy's hour"


def test_before_the_shadow_nothing_of_the_version_runs_until_the_yes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(world, before="shadow")
    said = Said(monkeypatch, suspended(), ("approve", "ann", "go"))
    pause_and_wait(world)
    assert "2" not in world.asked
    assert "2" not in world.slots()
    assert run(2).name == "Promoted"
    assert said.asked == ["approval-1", "approval-1"]


def test_an_endpoints_first_version_is_asked_for_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = World(tmp_path)
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    ask(made)
    Said(monkeypatch, ("reject", "ann", "no"))
    assert run(1).name == "Rejected"
    assert made.slots() == ("", "")


def pause_and_wait(world: World) -> None:
    """A run of version 2 that is suspended: its process ends, nothing is decided."""
    with pytest.raises(Pause):
        run(2)
    waits = world.newest()
    assert (waits.state, waits.owner) == (ReleaseState.WAITING, "")
    assert 'interlock approve flights --reason "..."' in waits.reason
    assert world.serving() == ("1", 0)


def test_the_form_shows_the_evidence(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch, suspended())
    pause_and_wait(world)
    form = said.forms[0]
    assert "### evaluate: PASS" in form
    assert "### shadow: PASS" in form
    assert "roc_auc" in form
    assert "[MLflow run](http://mlflow.example/run-flights-v2-1)" in form


def test_two_different_people_one_of_whom_did_not_register_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(world, approvers_min=2)
    world.registry.registered_by["2"] = ["ann"]
    said = Said(
        monkeypatch,
        ("approve", "ann", "mine, it is good"),
        ("approve", "Ann@home", "still good"),
        ("approve", "bob", "looked at it"),
    )
    assert run(2).name == "Promoted"
    assert said.asked == ["approval-1", "approval-2", "approval-3"]
    assert "**yes**, ann: mine, it is good" in said.forms[1]


def test_who_registered_it_is_asked_to_find_somebody_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.registry.registered_by["2"] = ["ann"]
    said = Said(monkeypatch, ("approve", "ann", "trust me"), suspended())
    with pytest.raises(Pause):
        run(2)
    assert "not only of ann, who registered the version" in world.newest().reason
    assert said.asked == ["approval-1", "approval-2"]
    with pytest.raises(Refused, match="said yes already"):
        waiting.answer(world.settings, "flights", is_yes=True, who="ann", reason="please")
    world.registry.registered_by["2"] = ["cleo"]  # the question stands as it was put


@pytest.mark.parametrize("place", ["waiting", "before it is kept", "after it is kept", "after the verdict"])
def test_killed_around_the_answer_it_resumes_and_asks_no_more_than_it_must(
    world: World, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    yes = ("approve", "ann", "go")
    said = Said(monkeypatch, Killed() if place == "waiting" else yes, yes)
    with monkeypatch.context() as patched:
        if place in ("before it is kept", "after it is kept"):
            keep = approving._keep

            def dies(*args: Any) -> None:
                if place == "after it is kept":
                    keep(*args)
                raise Killed

            patched.setattr(approving, "_keep", dies)
        if place == "after the verdict":

            def told_and_dead(*_: Any) -> None:
                raise Killed

            patched.setattr(approving, "_told", told_and_dead)
        with pytest.raises(Killed):
            run(2)
    world.clock.now += 60
    assert world.serving() == ("1", 0)
    assert run(2).name == "Promoted"
    assert len(said.asked) == (2 if place in ("waiting", "before it is kept") else 1)
    assert world.newest().id == "flights-v2-1"


def test_nobody_answers_and_the_next_one_to_look_rejects(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(world, timeout_s=600)
    Said(monkeypatch, suspended())
    pause_and_wait(world)
    assert all("was rejected" not in line for line in sweeping.sweep_endpoint.fn("flights"))
    world.clock.now += 601
    in_prefect(world, "SCHEDULED", "Scheduled")  # answered in time: the worker is only slow to come for it
    assert all("was rejected" not in line for line in sweeping.sweep_endpoint.fn("flights"))
    in_prefect(world, "PAUSED", "Suspended")
    assert any("nobody approved it within 600 s" in line for line in sweeping.sweep_endpoint.fn("flights"))
    assert world.newest().state is ReleaseState.REJECTED
    assert world.serving() == ("1", 0)
    assert run(2).name == "Refused"


def in_prefect(world: World, kind: str, name: str) -> None:
    """Give the flow run of the newest release a state, as Prefect's server would have it."""
    url = f"{world.settings.prefect_url}/flow_runs/{world.newest().flow_run_id}/set_state"
    body = {"state": {"type": kind, "name": name}, "force": True}
    httpx.post(url, json=body, timeout=30).raise_for_status()


@pytest.mark.parametrize("is_yes", [True, False])
def test_what_prefect_took_in_time_counts_when_the_flow_comes_back_late(
    world: World, monkeypatch: pytest.MonkeyPatch, is_yes: bool
) -> None:
    ask(world, timeout_s=600)
    said = {"decision": "approve" if is_yes else "reject", "name": "ann", "reason": "in time"}
    put = approving._put_question
    monkeypatch.setattr(approving, "_put_question", lambda release: put(release) - 601)
    monkeypatch.setattr(
        approving,
        "read_flow_run_input",
        lambda key, flow_run_id: said if key == "suspended-approval-1-response" else None,
    )
    assert run(2).name == ("Promoted" if is_yes else "Rejected")
    assert world.newest().verdicts["approve"]["reason"].endswith("by ann: in time")


def test_a_run_that_is_answered_after_its_release_ended_starts_no_other_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Said(monkeypatch, suspended(), ("approve", "ann", "late"))
    pause_and_wait(world)
    run_id = world.newest().flow_run_id
    rolling_back.abort(world.bench(), who="bob")
    monkeypatch.setattr("tasks.notices.flow_run_id", lambda: run_id)
    assert run(2).name == "Refused"
    assert len(said.asked) == 1
    assert world.newest().id == "flights-v2-1"
