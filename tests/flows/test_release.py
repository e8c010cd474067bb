"""The release flow, given, when, then: real flows, tasks and decisions on a simulated endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State, StateType

from flows import release as flow_module
from flows.release import release_model
from serving.endpoint import Route
from serving.errors import PlatformUnavailable
from serving.records import ReleaseState, Stage
from tasks import ramp, ramp_evidence, stages, sweeping, transitions
from tasks.bench import Bench
from tests.flows.world import Version, World, failing
from tests.tasks.doubles import Killed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An endpoint whose champion is version 1."""
    made = World(tmp_path)
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    assert run("1").name == "Promoted"
    made.clock.now += 60
    return made


def run(version: str, **parameters: Any) -> State:
    """Run the release flow to its final state."""
    return release_model("flights", int(version), return_state=True, **parameters)


def test_a_good_version_is_promoted_through_every_stage(world: World) -> None:
    world.add("2", Version(skill=1.0))
    world.registry.aliases["candidate"] = "2"
    state = run("2")
    assert (state.name, state.type) == ("Promoted", StateType.COMPLETED)
    assert world.serving() == ("2", 0)
    assert world.registry.aliases == {"champion": "2", "previous": "1"}
    ended = world.newest()
    assert ended.state is ReleaseState.PROMOTED
    assert ended.decided_stage == "canary"
    assert {stage: stored["outcome"] for stage, stored in ended.verdicts.items()} == {
        "evaluate": "PASS",
        "shadow": "PASS",
        "approve": "PASS",
        "canary": "PASS",
    }
    shares = [line.details["share_percent"] for line in world.journal.audit("flights") if line.what == "step"]
    assert sorted(shares) == [25, 50, 95]
    assert world.runs.closed["status"] == "FINISHED"
    decisions = json.loads(world.runs.documents["decisions.json"])
    assert decisions["state"] == "PROMOTED"
    assert len(decisions["looks"]["canary"]) > 10
    page = world.runs.documents["report.html"]
    assert "The ramp and its evidence" in page
    assert "<svg" in page


def test_a_worse_version_fails_the_evaluation_and_is_never_deployed(world: World) -> None:
    world.add("2", Version(skill=0.1))
    world.registry.aliases["candidate"] = "2"
    state = run("2")
    assert (state.name, state.type) == ("Rejected", StateType.FAILED)
    assert state.message is not None
    assert "roc_auc" in state.message
    assert "2" not in world.slots()
    assert "2" not in world.asked
    assert world.registry.aliases == {"champion": "1"}
    assert world.newest().decided_stage == "evaluate"


def test_errors_on_live_inputs_are_caught_by_the_shadow_and_no_user_sees_them(world: World) -> None:
    world.add("2", Version(answer=failing(0.2)))
    state = run("2")
    assert state.name == "Rejected"
    assert world.newest().decided_stage == "shadow"
    frame = world.endpoint.observations("0").frame
    assert set(frame["version"]) == {"1"}
    assert "2" in world.asked
    assert world.serving() == ("1", 0)


def test_a_version_that_degrades_under_live_traffic_is_rolled_back_by_the_canary(world: World) -> None:
    world.add("2", Version())
    turn_bad_at_share(world, "2")
    state = run("2")
    assert state.name == "Rejected"
    assert world.newest().decided_stage == "canary"
    assert world.serving() == ("1", 0)
    assert world.slots()[1] == ""
    assert world.newest().decided_at is not None


def turn_bad_at_share(world: World, number: str) -> None:
    """From the moment that it gets live traffic, a third of a version's answers are errors."""

    def worsen() -> None:
        if world.serving()[1] > 0:
            world.versions[number].answer = failing(0.33)

    world.on_second = worsen


def _with_error_budget(world: World, budget: float) -> None:
    canary = world.policy.canary.model_copy(update={"error_budget": budget})
    world.policy = world.policy.model_copy(update={"canary": canary})


def _steps_taken(world: World) -> list[float]:
    lines = [line for line in world.journal.audit("flights") if line.what == "step"]
    return [line.details["share_percent"] for line in reversed(lines)]


def test_a_wide_error_budget_skips_the_steps_whose_worst_case_it_covers(world: World) -> None:
    _with_error_budget(world, 1_000)
    world.add("2", Version(skill=1.0))
    assert run("2").name == "Promoted"
    assert _steps_taken(world) == [95]


def test_a_tight_error_budget_holds_the_ramp_until_the_bound_has_tightened(world: World) -> None:
    _with_error_budget(world, 8)
    world.add("2", Version(skill=1.0))
    held: set[str] = set()
    world.on_second = lambda: held.update(
        advance
        for one in world.journal.releases("flights")[:1]
        if "budget" in (advance := str(one.progress.get("advance", "")))
    )
    assert run("2").name == "Promoted"
    assert any(text.startswith("HOLD") and "the budget is 8" in text for text in held), held
    looks = world.journal.looks(world.newest().id, "canary")
    at_first = [look.stats["seconds_at_step"] for look in looks[1:] if look.stats["step"] == 0]
    assert max(at_first) > 3 * world.policy.canary.bake_s


def test_a_paused_ramp_keeps_its_share_and_its_watch_until_it_is_resumed(world: World) -> None:
    world.add("2", Version(skill=1.0))
    shares: list[int] = []

    def pause_at_the_first_share() -> None:
        share = world.serving()[1]
        if share and not shares:
            world.journal.ask(world.newest().id, "pause")
        if share and len(shares) < 100:
            shares.append(share)
            if len(shares) == 100:
                world.journal.ask(world.newest().id, "")

    world.on_second = pause_at_the_first_share
    assert run("2").name == "Promoted"
    assert set(shares) == {500}, "a hundred seconds at the first share, which its evidence had long cleared"
    looks = world.journal.looks(world.newest().id, "canary")
    assert sum(look.stats.get("step") == 0 for look in looks) > 90


def test_a_paused_ramp_still_rolls_back(world: World) -> None:
    world.add("2", Version())
    world.on_second = lambda: None
    turned: list[float] = []

    def pause_then_harm() -> None:
        if not world.serving()[1] or turned:
            return
        world.journal.ask(world.newest().id, "pause")
        turned.append(world.clock.now)
        world.add("2", Version(answer=failing(0.5)))

    world.on_second = pause_then_harm
    assert run("2").name == "Rejected"
    assert world.serving() == ("1", 0)


def test_without_traffic_nothing_advances_and_a_person_can_abort(world: World) -> None:
    world.add("2", Version())
    ticks = [0]

    def stop_traffic_at_the_canary() -> None:
        if world.serving()[1] > 0:
            world.requests_per_s = 0
            ticks[0] += 1
            assert world.serving() == ("1", 500)
        if ticks[0] == 200:
            world.journal.ask(world.newest().id, "abort")

    world.on_second = stop_traffic_at_the_canary
    state = run("2")
    assert (state.name, state.type) == ("Aborted", StateType.CANCELLED)
    assert world.serving() == ("1", 0)
    assert world.newest().state is ReleaseState.ABORTED


def test_a_shadow_without_traffic_holds_the_release_and_rejects_nothing(world: World) -> None:
    world.add("2", Version())
    world.registry.aliases["candidate"] = "2"
    world.requests_per_s = 0
    state = run("2")
    assert state.name == "Held"
    assert world.newest().state is ReleaseState.HELD
    assert world.registry.aliases["candidate"] == "2"
    world.requests_per_s = 60
    assert run("2").name == "Promoted"
    assert world.newest().id == "flights-v2-1"


STAGES = ("evaluate", "place_candidate", "shadow", "approve", "canary", "promote_candidate")


@pytest.mark.parametrize("stage", STAGES)
def test_killed_after_any_stage_the_release_resumes_to_the_same_end(
    world: World, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("2", Version())
    world.registry.aliases["candidate"] = "2"
    original = getattr(flow_module, stage)

    def dies_afterwards(*args: Any) -> Any:
        original(*args)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(flow_module, stage, dies_afterwards)
        with pytest.raises(Killed):
            run("2")
    if stage != "promote_candidate":
        assert world.serving()[0] == "1"
    world.clock.now += world.policy.canary.lease_s + 1
    if stage != "promote_candidate":
        assert world.serving() == ("1", 0)
        assert run("2").name == "Promoted"
    assert world.serving() == ("2", 0)
    assert world.newest().id == "flights-v2-1"
    assert world.newest().state is ReleaseState.PROMOTED
    assert world.registry.aliases == {"champion": "2", "previous": "1"}


def die(*_: Any, **__: Any) -> None:
    raise Killed


def test_killed_while_it_is_placed_nothing_serves_and_it_resumes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("2", Version())
    world.registry.aliases["candidate"] = "2"
    with monkeypatch.context() as patched:
        patched.setattr(world.endpoint, "deploy", die)
        with pytest.raises(Killed):
            run("2")
    assert world.newest().stage is Stage.STAGE
    assert world.serving() == ("1", 0)
    world.clock.now += world.policy.canary.lease_s + 1
    assert "made safe" in sweeping.sweep_endpoint.fn("flights")[0]
    assert world.newest().state is ReleaseState.INTERRUPTED
    assert world.registry.aliases == {"champion": "1", "candidate": "2"}
    assert run("2").name == "Promoted"
    assert world.newest().id == "flights-v2-1"


def test_killed_between_the_decision_and_the_aliases_the_sweep_finishes_the_promotion(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("2", Version())
    with monkeypatch.context() as patched:
        patched.setattr(world.registry, "point", die)
        with pytest.raises(Killed):
            run("2")
    assert world.serving() == ("2", 0)
    assert world.registry.aliases == {"champion": "1"}
    assert sweeping.sweep_endpoint.fn("flights")[0] == "flights: finished promote of version 2"
    assert world.newest().state is ReleaseState.PROMOTED
    assert world.registry.aliases == {"champion": "2", "previous": "1"}
    assert run("2").name == "Refused"


def test_killed_in_the_middle_of_the_canary_it_goes_on_with_the_evidence_that_it_had(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("2", Version())
    monkeypatch.setattr(ramp_evidence, "_PART_ROWS", 7)  # what is read again comes in many parts
    looks = [0]
    original = ramp._look

    def die_at_the_tenth(*args: Any) -> Any:
        looks[0] += 1
        if looks[0] == 10:
            raise Killed
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(ramp, "_look", die_at_the_tenth)
        with pytest.raises(Killed):
            run("2")
    world.clock.now += world.policy.canary.lease_s + 1
    stored = world.journal.looks("flights-v2-1", "canary")
    assert run("2").name == "Promoted"
    after = world.journal.looks("flights-v2-1", "canary")
    assert after[: len(stored)] == stored
    assert len(after) > len(stored)
    users = [
        sum(group["entered"]) for look in after[1:] for group in (*look.stats["groups"], {"entered": [0]})
    ]
    assert sum(users) <= len(world.endpoint.observations("0").frame)


def test_a_verdict_that_nobody_acted_on_is_carried_out_by_the_next_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("2", Version())
    turn_bad_at_share(world, "2")
    with monkeypatch.context() as patched:

        def dies(*_: Any, **__: Any) -> None:
            raise Killed

        patched.setattr(transitions, "reject", dies)
        with pytest.raises(Killed):
            run("2")
    world.versions["2"].answer = Version().answer
    world.on_second = lambda: None
    world.clock.now += world.policy.canary.lease_s + 1
    assert run("2").name == "Rejected"
    assert world.serving() == ("1", 0)


def test_a_second_release_is_refused_with_the_first_ones_name(world: World) -> None:
    world.add("2", Version())
    world.add("3", Version())
    world.journal.add_release(
        "flights", "2", champion="1", policy=world.policy.model_dump(mode="json"), now=world.clock.now
    )
    state = run("3")
    assert (state.name, state.type) == ("Refused", StateType.CANCELLED)
    assert state.message is not None
    assert "flights-v2-1" in state.message


def test_a_rollback_by_hand_fences_the_running_release(world: World) -> None:
    from tasks import rolling_back

    world.add("2", Version())
    done = [False]

    def roll_back_at_the_first_share() -> None:
        if world.serving()[1] > 0 and not done[0]:
            done[0] = True
            rolling_back.roll_back(world.bench(), who="a person", reason="looks wrong")

    world.on_second = roll_back_at_the_first_share
    state = run("2")
    assert state.name == "Interrupted"
    assert world.serving() == ("1", 0)
    assert world.newest().state is ReleaseState.ROLLED_BACK
    assert world.newest().reason == "looks wrong"


def test_an_expired_lease_is_held_and_entered_afresh(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add("2", Version())
    original, slow = stages.run_canary, [False]

    def stall() -> None:
        if world.serving()[1] > 0 and not slow[0]:
            slow[0] = True
            row = world.journal.open_release("flights")
            assert row is not None
            world.clock.now += world.policy.canary.lease_s + 5
            # The claim is renewed by its own thread; here time jumped past it.
            world.journal.claim(
                row.id, row.owner, lease_s=60, now=world.clock.now, flow_run_id=row.flow_run_id
            )

    world.on_second = stall
    monkeypatch.setattr(stages, "run_canary", original)
    state = run("2")
    assert state.name == "Promoted"
    assert any(line.what == "lease expired" for line in world.journal.audit("flights", limit=500))


def test_a_first_share_that_ran_out_before_it_was_confirmed_is_entered_afresh(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The platform goes away in the middle of the first grant, for longer than a lease."""
    world.add("2", Version())
    apply, alive, away_until = world.endpoint.apply, ramp.check_alive, [0.0]

    def breaks_off(route: Route) -> None:
        if route.share_bp and not away_until[0]:
            away_until[0] = world.clock.now + world.policy.canary.lease_s + 10
            raise PlatformUnavailable("the platform is away for a moment")
        apply(route)

    def not_seen(*args: Any) -> None:
        if world.clock.now < away_until[0]:
            raise PlatformUnavailable("the platform is away for a moment")
        alive(*args)

    monkeypatch.setattr(world.endpoint, "apply", breaks_off)
    monkeypatch.setattr(ramp, "check_alive", not_seen)
    world.on_second = world.keep_claim
    assert run("2").name == "Promoted"
    assert any(line.what == "lease expired" for line in world.journal.audit("flights", limit=500))


@pytest.mark.parametrize("held_s", [0, 20], ids=["before-the-soak", "in-the-soak"])
def test_what_passes_without_the_share_is_no_soak(
    world: World, monkeypatch: pytest.MonkeyPatch, held_s: int
) -> None:
    """The platform takes no grant for 45 s, the lease of 30 s runs out: the soak has to be whole after it."""
    world.add("2", Version())
    soak_s = 60
    world.policy = world.policy.model_copy(
        update={"canary": world.policy.canary.model_copy(update={"soak_s": soak_s})}
    )
    soaks: list[float] = [0]
    away_until = [0.0]
    apply = world.endpoint.apply

    def sometimes(route: Route) -> None:
        if not away_until[0] and route.share_bp == 9500 and soaks[-1] >= held_s:
            away_until[0] = world.clock.now + 45
        if world.clock.now < away_until[0]:
            raise PlatformUnavailable("the platform is away for a moment")
        apply(route)

    def count() -> None:
        world.keep_claim()
        if world.serving() == ("1", 9500):
            soaks[-1] += 1
        elif soaks[-1]:
            soaks.append(0)

    world.on_second = count
    monkeypatch.setattr(world.endpoint, "apply", sometimes)
    assert run("2").name == "Promoted"
    assert away_until[0]
    last = [seconds for seconds in soaks if seconds][-1]
    assert last >= soak_s - 1
