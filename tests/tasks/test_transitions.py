"""Changes of traffic: killed before and after every effect, then finished by whoever comes next."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.policy import Policy
from configs.settings import Settings
from serving.endpoint import Slot
from serving.errors import Fenced, LeaseExpired, Refused
from serving.fake import FakeEndpoint
from serving.journal import Journal
from serving.records import ReleaseRow, ReleaseState, Stage
from tasks import rolling_back, transitions
from tasks.bench import Bench
from tasks.release import open_release
from tests.tasks.doubles import Deadline, HandClock, Killed, MemoryMessenger, MemoryRegistry, Mortal

_RUNS = itertools.count()

POLICY = Policy.model_validate(
    {
        "endpoint": "flights",
        "model": "late",
        "owner": "me@example.com",
        "evaluation": {
            "data": "x.parquet",
            "label": "late",
            "task": "classification",
            "metrics": [{"name": "roc_auc"}],
        },
        "shadow": {"score_tolerance": 0.1},
    }
)


class World:
    """One endpoint that outlives the processes which work on it."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(state_dir=folder)
        self.clock = HandClock()
        self.registry = MemoryRegistry()
        self.messenger = MemoryMessenger()
        self.endpoint = FakeEndpoint("flights", clock=self.clock)
        self.journal = Journal(self.settings.journal)

    def bench(self, deadline: Deadline | None = None) -> Bench:
        """A fresh process's view of the world."""
        journal: Any = Journal(self.settings.journal)
        endpoint: Any = self.endpoint
        registry: Any = self.registry
        messenger: Any = self.messenger
        if deadline is not None:
            journal = Mortal(journal, deadline, ("change", "end_release", "record", "record_once"))
            endpoint = Mortal(endpoint, deadline, ("apply", "deploy", "retire"))
            registry = Mortal(registry, deadline, ("point", "unpoint", "tag"))
        bench = Bench(
            POLICY,
            self.settings,
            endpoint=endpoint,
            registry=registry,
            messenger=messenger,
            clock=self.clock,
            sleep=self.clock.sleep,
        )
        bench.__dict__["journal"] = journal
        return bench

    def first_champion(self) -> None:
        """Version 1 serves."""
        release = self.release("1")
        transitions.place(self.bench(), release, first=True)
        transitions.promote(self.bench(), release, who="test", reason="first", first=True)

    def release(self, version: str) -> ReleaseRow:
        """A claimed release of a version."""
        bench = self.bench()
        run = f"run-{next(_RUNS)}"
        return open_release(bench, version, again=False, reason="", flow_run_id=run, owner="me").row

    def ramping(self, version: str = "2", share: float = 25) -> tuple[ReleaseRow, Any]:
        """A claimed release whose candidate holds a share."""
        release = self.release(version)
        row = transitions.place(self.bench(), release, first=False)
        return release, transitions.grant(self.bench(), row, share)

    def serving(self) -> tuple[str, float]:
        """What the platform does: the default's version, and the share of the other one now."""
        route = self.endpoint.describe().route
        assert route is not None
        return route.default_version, route.share_bp / 10_000

    def consistent(self) -> None:
        """Journal, platform and aliases tell one story, and no change is left half done."""
        row = self.journal.endpoint("flights")
        assert row is not None
        assert row.intent is None
        route = self.endpoint.describe().route
        assert route is not None
        assert (route.default_version, route.other_version) == (row.champion, row.other_version)
        assert route.generation == row.generation
        assert self.registry.aliases.get("champion") == row.champion
        assert row.champion not in (
            self.registry.aliases.get("candidate"),
            self.registry.aliases.get("previous"),
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_first_champion_serves_and_is_named(world: World) -> None:
    world.registry.aliases["candidate"] = "1"
    world.first_champion()
    assert world.serving() == ("1", 0)
    assert world.registry.aliases == {"champion": "1"}
    world.consistent()


def test_a_promotion_moves_traffic_then_the_aliases(world: World) -> None:
    world.first_champion()
    world.registry.aliases["candidate"] = "2"
    release, _ = world.ramping()
    assert world.serving() == ("1", 0.25)
    transitions.promote(world.bench(), release, who="test", reason="good")
    assert world.serving() == ("2", 0)
    assert world.registry.aliases == {"champion": "2", "previous": "1"}
    world.consistent()
    ended = world.journal.release(release.id)
    assert ended is not None
    assert (ended.state, ended.owner) == (ReleaseState.PROMOTED, "")


def test_a_rejection_takes_the_share_the_alias_and_the_slot(world: World) -> None:
    world.first_champion()
    world.registry.aliases["candidate"] = "2"
    release, _ = world.ramping()
    transitions.reject(
        world.bench(), release, state=ReleaseState.REJECTED, who="test", reason="errors", at=world.clock.now
    )
    assert world.serving() == ("1", 0)
    assert world.registry.aliases == {"champion": "1"}
    assert world.registry.tags["2"]["interlock.flights.outcome"] == "rejected"
    assert world.endpoint.describe().versions[Slot.GREEN] == ""
    world.consistent()


def test_a_rejected_version_is_refused_until_somebody_says_again_and_why(world: World) -> None:
    world.first_champion()
    release, _ = world.ramping()
    transitions.reject(
        world.bench(), release, state=ReleaseState.REJECTED, who="test", reason="errors", at=world.clock.now
    )
    with pytest.raises(Refused, match="--again"):
        world.release("2")
    with pytest.raises(Refused, match="--again"):
        open_release(world.bench(), "2", again=True, reason="", flow_run_id="another", owner="you")
    again = open_release(
        world.bench(), "2", again=True, reason="host was broken", flow_run_id="another", owner="you"
    )
    assert again.row.id == "flights-v2-2"


def promotion(world: World) -> Callable[[Bench], object]:
    release, _ = world.ramping()
    return lambda bench: transitions.promote(bench, release, who="test", reason="good")


def rejection(world: World) -> Callable[[Bench], object]:
    release, _ = world.ramping()
    return lambda bench: transitions.reject(
        bench, release, state=ReleaseState.REJECTED, who="test", reason="errors", at=world.clock.now
    )


def undoing(world: World) -> Callable[[Bench], object]:
    promotion(world)(world.bench())
    return lambda bench: transitions.return_to_previous(
        bench, None, who="test", reason="harm", at=world.clock.now, proven="1"
    )


CHANGES = {"promote": (promotion, "1", "2"), "reject": (rejection, "1", "1"), "undo": (undoing, "2", "1")}


def effects_of(kind: str, folder: Path) -> int:
    """How many effects a change has."""
    world = World(folder)
    world.first_champion()
    deadline = Deadline(None, after=False)
    CHANGES[kind][0](world)(world.bench(deadline))
    return deadline.count


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_killed_at_any_effect_is_finished_by_the_next_one(
    kind: str, after: bool, tmp_path: Path
) -> None:
    begin, before, wanted = CHANGES[kind]
    effects = effects_of(kind, tmp_path / "count")
    assert effects >= 6
    for number in range(1, effects + 1):
        world = World(tmp_path / f"{number}")
        world.first_champion()
        change = begin(world)
        with pytest.raises(Killed):
            change(world.bench(Deadline(number, after=after)))
        intended = world.bench().row().intent is not None
        done = world.bench().row().champion == wanted and not intended
        # One generation decides: either the old state stands, or the change goes through.
        assert world.serving()[0] in (before, wanted)
        transitions.finish(world.bench())
        if not intended and not (done and number > 1):
            change(world.bench())
        assert world.serving() == (wanted, 0)
        world.consistent()


def test_a_stale_loop_can_neither_grant_nor_renew_after_a_rollback_by_hand(world: World) -> None:
    world.first_champion()
    release, row = world.ramping()
    report = rolling_back.roll_back(world.bench(), who="a person", reason="looks wrong")
    assert (report.was, report.now) == ("2", "1")
    before = world.endpoint.describe()
    with pytest.raises(Fenced):
        transitions.grant(world.bench(), row, 50)
    with pytest.raises(Fenced):
        transitions.withdraw(world.bench(), row)
    assert world.endpoint.describe() == before
    with pytest.raises(Fenced):
        world.journal.update_release(release.id, "me", now=world.clock.now, stage=Stage.PROMOTE.value)
    world.consistent()


def test_an_expired_lease_is_not_renewed_silently(world: World) -> None:
    world.first_champion()
    _, row = world.ramping(share=25)
    world.clock.now += POLICY.canary.lease_s + 2
    assert world.serving() == ("1", 0)
    with pytest.raises(LeaseExpired):
        transitions.grant(world.bench(), row, 25)
    assert world.serving() == ("1", 0)
    row = transitions.withdraw(world.bench(), row)
    transitions.grant(world.bench(), row, 25)
    assert world.serving() == ("1", 0.25)


def test_renewing_in_time_keeps_the_share(world: World) -> None:
    world.first_champion()
    _, row = world.ramping(share=25)
    for _ in range(10):
        world.clock.now += POLICY.canary.lease_s / 2
        row = transitions.grant(world.bench(), row, 25)
        assert world.serving() == ("1", 0.25)


def test_making_safe_keeps_slot_alias_and_evidence_and_can_be_resumed(world: World) -> None:
    world.first_champion()
    world.registry.aliases["candidate"] = "2"
    release, row = world.ramping()
    transitions.make_safe(world.bench(), release, who="make-safe", reason="its flow died")
    assert world.serving() == ("1", 0)
    assert world.registry.aliases["candidate"] == "2"
    assert world.endpoint.describe().versions[Slot.GREEN] == "2"
    with pytest.raises(Fenced):
        transitions.grant(world.bench(), row, 25)
    resumed = world.release("2")
    assert resumed.id == release.id
    row = transitions.place(world.bench(), resumed, first=False)
    transitions.grant(world.bench(), row, 5)
    assert world.serving() == ("1", 0.05)
    transitions.promote(world.bench(), resumed, who="test", reason="good")
    world.consistent()


def test_a_rollback_after_promotion_returns_to_the_warm_previous_version(world: World) -> None:
    world.first_champion()
    promotion(world)(world.bench())
    report = rolling_back.roll_back(world.bench(), who="a person", reason="complaints")
    assert (report.was, report.now, report.started_cold) == ("2", "1", False)
    assert world.serving() == ("1", 0)
    assert world.registry.aliases == {"champion": "1"}
    newest = world.journal.releases("flights", version="2")[0]
    assert newest.state is ReleaseState.ROLLED_BACK
    world.consistent()


def test_a_rollback_to_a_cold_previous_version_starts_it_first(world: World) -> None:
    world.first_champion()
    promotion(world)(world.bench())
    row = world.bench().row()
    world.journal.change(
        "flights", generation=row.generation, new_generation=row.generation + 1, now=1.0, blue_version=""
    )
    transitions.follow_journal(world.bench())
    world.endpoint.retire(Slot.BLUE)
    report = rolling_back.roll_back(world.bench(), who="a person", reason="complaints")
    assert report.started_cold
    assert world.serving() == ("1", 0)
    world.consistent()


def test_a_rollback_with_nothing_to_return_to_is_refused_and_traffic_stays(world: World) -> None:
    world.first_champion()
    with pytest.raises(Refused, match="no previous version"):
        rolling_back.roll_back(world.bench(), who="a person", reason="panic")
    assert world.serving() == ("1", 0)
    world.consistent()


def test_an_abort_where_nobody_runs_the_release_ends_it_without_rejecting(world: World) -> None:
    world.first_champion()
    release, _ = world.ramping()
    transitions.make_safe(world.bench(), release, who="make-safe", reason="its flow died")
    rolling_back.abort(world.bench(), who="a person")
    ended = world.journal.release(release.id)
    assert ended is not None
    assert ended.state is ReleaseState.ABORTED
    assert world.release("2").id == "flights-v2-2"


def test_a_champion_that_changed_while_a_release_was_interrupted_voids_what_it_had_shown(
    world: World,
) -> None:
    world.first_champion()
    promotion(world)(world.bench())
    release, _ = world.ramping("3")
    bench = world.bench()
    bench.journal.update_release(
        release.id, "me", now=world.clock.now, verdicts={"evaluate": {"outcome": "PASS"}}
    )
    transitions.make_safe(bench, release, who="make-safe", reason="died")
    row = bench.row()
    bench.journal.change(
        "flights",
        generation=row.generation,
        new_generation=row.generation + 1,
        now=1.0,
        **{f"{row.default_slot}_version": "9"},
    )
    resumed = world.release("3")
    assert (resumed.champion, resumed.verdicts, resumed.stage) == ("9", {}, Stage.EVALUATE)


def test_an_endpoint_that_never_served_has_nothing_to_roll_back(world: World) -> None:
    with pytest.raises(Refused, match="never served"):
        rolling_back.roll_back(world.bench(), who="a person", reason="panic")
