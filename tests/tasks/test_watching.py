"""After the promotion: harm that only the new version has goes back, and nothing else does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.policy import Policy
from serving.endpoint import Reply, Slot
from serving.errors import PlatformUnavailable
from serving.records import ReleaseState
from tasks import transitions
from tasks.bench import Bench
from tasks.previous import WATCH
from tasks.signatures import note_signature
from tasks.watching import WatchReport, look
from tests.tasks import test_transitions
from tests.tasks.doubles import Deadline, Killed, Mortal


def policy(**changed: Any) -> Policy:
    wanted = {"error_rate": 0.01, "control": {"rate_per_s": 1e6, "every_s": 300}, **changed}
    serving = {"runtime": "vllm" if "measures" in changed else "pyfunc"}
    return Policy.model_validate(
        {**test_transitions.POLICY.model_dump(), "watch": wanted, "serving": serving}
    )


class World(test_transitions.World):
    """Version 2 was promoted over version 1, which is still warm; both answer well so far."""

    def __init__(self, folder: Path, **watched: Any) -> None:
        super().__init__(folder)
        self.policy = policy(**watched)
        self.sent = 0
        self.first_champion()
        release, _ = self.ramping("2")
        transitions.promote(self.bench(), release, who="test", reason="good")

    def bench(self, deadline: Deadline | None = None) -> Bench:
        bench = super().bench(deadline)
        bench.policy = getattr(self, "policy", test_transitions.POLICY)
        if deadline is not None:
            bench.__dict__["journal"] = Mortal(
                bench.journal, deadline, ("put_state", "change", "record", "end_release")
            )
        return bench

    def seconds(self, count: int, per_s: int = 50) -> None:
        """Let time pass, with its traffic."""
        for _ in range(count):
            self.clock.now += 1
            for _ in range(per_s):
                self.sent += 1
                self.endpoint.send(str(self.sent).encode(), user=f"user-{self.sent % 1000}")

    def look(self) -> WatchReport:
        """One look of a fresh process."""
        return look(self.bench())

    def alerts(self) -> list[str]:
        """What people were told, newest first."""
        lines = self.journal.audit("flights", what=("alert",))
        return [line.details["message"] for line in lines if line.details["severity"] == "critical"]

    def watched(self, seconds: int = 20) -> World:
        """After a good while of being watched."""
        self.look()
        for _ in range(seconds // 5):
            self.seconds(5)
            report = self.look()
            assert (report.outcome, report.step) == ("INCONCLUSIVE", "GO_ON"), report
        return self


def failing(share: float, *, key: int = 0) -> Callable[[bytes], Reply]:
    """500 for a share of the requests: always the same ones."""
    return lambda body: (
        Reply(500, b"{}", 2.0)
        if (int(body) * 2654435761 + key) % 1000 < share * 1000
        else Reply(200, b"1", 2.0)
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_harm_that_only_the_new_version_has_goes_back(world: World) -> None:
    world.watched()
    world.endpoint.behave("2", failing(0.2))
    world.seconds(5)
    report = world.look()
    assert (report.outcome, report.step) == ("FAIL", "ROLL_BACK"), report
    assert report.rollback is not None
    assert (report.rollback.was, report.rollback.now) == ("2", "1")
    assert world.serving() == ("1", 0)
    assert world.registry.aliases == {"champion": "1"}
    assert world.journal.releases("flights", version="2")[0].state is ReleaseState.ROLLED_BACK
    assert "was rolled back; version 1 serves" in world.alerts()[0]
    world.consistent()
    world.seconds(5)
    after = world.look()
    assert (after.outcome, after.version) == ("INCONCLUSIVE", "1"), "the version that serves now starts clean"
    assert len(world.alerts()) == 1, "nobody is told of the budget that the harm spent"


def test_harm_that_a_new_champion_has_from_its_first_second_goes_back(world: World) -> None:
    world.watched()
    release, _ = world.ramping("3")
    transitions.promote(world.bench(), release, who="test", reason="good")
    world.endpoint.behave("3", failing(0.2))
    seen: list[WatchReport] = []
    while len(seen) < 4 and not (seen and seen[-1].rollback):
        world.seconds(5)
        seen.append(world.look())
    assert {report.outcome for report in seen} == {"FAIL"}
    assert [report.step for report in seen] == ["ASK", "ROLL_BACK"]
    assert world.serving() == ("2", 0)


def test_harm_on_both_versions_does_not_go_back_and_says_why(world: World) -> None:
    world.watched()
    for version in ("1", "2"):
        world.endpoint.behave(version, failing(0.2))
    steps = []
    for _ in range(20):
        world.seconds(5)
        steps.append(world.look().step)
    assert world.serving() == ("2", 0)
    assert steps.count("ALERT") == 1, "the control is not asked all the time"
    assert len(world.alerts()) == 1
    assert "both versions suffer" in world.alerts()[0]
    assert "traffic stays on version 2" in world.alerts()[0]


def test_a_control_that_both_failed_is_asked_again_later(world: World) -> None:
    world.watched()
    for version in ("1", "2"):
        world.endpoint.behave(version, failing(0.2))
    world.seconds(5)
    assert world.look().step == "ALERT"
    world.endpoint.behave("1", failing(0.0))
    for _ in range(58):
        world.seconds(5)
        assert world.look().step == "GO_ON"
    world.seconds(10)
    assert world.look().step == "ROLL_BACK"
    assert world.serving() == ("1", 0)


def test_harm_without_a_healthy_previous_version_stays_and_pages(world: World) -> None:
    world.watched()
    world.endpoint.sicken("1")
    world.endpoint.behave("2", failing(0.5))
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert world.serving() == ("2", 0)
    assert "version 1 is not healthy" in world.alerts()[0]


def cold(world: World) -> World:
    """The previous version is known, but no longer runs."""
    row = world.bench().row()
    world.journal.change(
        "flights",
        generation=row.generation,
        new_generation=row.generation + 1,
        now=1.0,
        keep_until=0.0,
        blue_version="",
    )
    transitions.follow_journal(world.bench())
    world.endpoint.retire(Slot.BLUE)
    return world


def test_a_cold_previous_version_is_started_for_the_control_and_kept_only_for_a_while(world: World) -> None:
    cold(world.watched())
    world.endpoint.behave("2", failing(0.2))
    world.seconds(5)
    report = world.look()
    assert report.step == "ROLL_BACK", report
    (started,) = world.journal.audit("flights", what=("started cold",))
    assert started.details["version"] == "1"
    assert world.serving() == ("1", 0)


def test_a_cold_version_that_was_started_in_vain_is_retired_again(world: World) -> None:
    cold(world.watched())
    for version in ("1", "2"):
        world.endpoint.behave(version, failing(0.2))
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert world.bench().row().keep_until == pytest.approx(
        world.clock.now + world.policy.keep_previous_s, abs=1
    )


def test_a_policy_can_forbid_starting_the_previous_version(tmp_path: Path) -> None:
    world = cold(World(tmp_path, control={"start_cold": False}).watched())
    world.endpoint.behave("2", failing(0.2))
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert "start_cold is off" in world.alerts()[0]


def test_a_previous_version_that_does_not_start_leaves_traffic_alone(world: World) -> None:
    cold(world.watched())
    world.endpoint.break_start("1")
    world.endpoint.behave("2", failing(0.5))
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert world.serving() == ("2", 0)
    assert "does not become healthy" in world.alerts()[0]


def test_a_previous_version_that_clients_outgrew_is_left_alone(world: World) -> None:
    world.watched()
    for version, columns in (("1", ["a", "b"]), ("2", ["a"])):
        note_signature(world.bench(), "r", version, Model(columns))
    world.endpoint.behave("2", failing(0.5))
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert world.serving() == ("2", 0)
    assert "needs the input column 'b'" in world.alerts()[0]


class Model:
    """A loaded model with a signature, as MLflow's pyfunc has it."""

    def __init__(self, columns: list[str], kind: str = "double", output: str = "double") -> None:
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        inputs = Schema([ColSpec(kind, name) for name in columns])
        self.metadata = self
        self.signature = ModelSignature(inputs, Schema([ColSpec(output)]))


def test_harm_that_the_replays_do_not_show_only_alerts(world: World) -> None:
    """A fault of concurrency, say: what is replayed one by one is answered."""
    world.watched()
    world.endpoint.behave("2", failing(0.3))
    world.seconds(5)
    world.endpoint.behave("2", failing(0.0))
    assert world.look().step == "ALERT"
    assert "does not tell them apart" in world.alerts()[0]
    assert world.serving() == ("2", 0)


def test_without_captured_requests_nobody_knows_and_nothing_moves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.watched()

    def nothing(*_: object, **__: object) -> None:
        raise PlatformUnavailable("the spool is off")

    monkeypatch.setattr(world.endpoint, "exchanges", nothing)
    world.endpoint.behave("2", failing(0.3))
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert "suffers too is not known" in world.alerts()[0]


def test_few_requests_are_waited_for(world: World) -> None:
    """Two requests a look: the question stays open until enough pairs have come."""
    world.watched()
    world.endpoint.behave("2", failing(1.0))
    steps = []
    for _ in range(40):
        world.seconds(5, per_s=0)
        world.seconds(1, per_s=2)
        steps.append(world.look().step)
        if steps[-1] == "ROLL_BACK":
            break
    assert steps[-1] == "ROLL_BACK"
    assert set(steps) <= {"GO_ON", "ASK", "ROLL_BACK"}
    assert world.serving() == ("1", 0)


def test_replays_are_neither_traffic_nor_evidence(world: World) -> None:
    world.watched()
    asked = []
    world.endpoint.behave("2", lambda body: asked.append(body) or failing(0.2)(body))
    world.endpoint.behave("1", lambda body: asked.append(body) or Reply(200, b"1", 2.0))
    world.seconds(5)
    live = len(asked)
    world.look()
    assert len(asked) > live + 50, "both versions were asked again"
    assert len(world.endpoint.observations("0").frame) == world.sent
    assert len(world.endpoint.exchanges("0", limit=10**6)[0]) == world.sent


def test_a_broken_champion_under_a_ramp_freezes_it_and_asks_a_person(world: World) -> None:
    world.watched()
    release, _ = world.ramping("3", share=25)
    bench = world.bench()
    bench.journal.update_release(release.id, "me", now=world.clock.now, stage="canary")
    world.endpoint.behave("2", failing(0.5))
    world.seconds(5)
    assert world.look().step == "ALERT"
    now = world.journal.release(release.id)
    assert now is not None
    assert (now.request, now.state) == ("pause", ReleaseState.RUNNING)
    assert world.serving() == ("2", 0.25)
    assert "its ramp is paused" in world.alerts()[0]


def test_a_policy_that_forbids_it_is_obeyed(tmp_path: Path) -> None:
    world = World(tmp_path, roll_back=False).watched()
    world.endpoint.behave("2", failing(0.2))
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert world.serving() == ("2", 0)
    assert "watch.roll_back is off" in world.alerts()[0]


def test_harm_keeps_the_previous_version_from_being_retired(world: World) -> None:
    world.watched()
    for version in ("1", "2"):
        world.endpoint.behave(version, failing(0.2))
    world.clock.now = world.bench().row().keep_until - 10
    world.seconds(5)
    assert world.look().step == "ALERT"
    assert world.bench().row().keep_until > world.clock.now + 300


def test_of_two_watches_one_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.watched()
    world.seconds(5)
    late = world.bench()
    stored = late.journal.state("flights", WATCH)
    monkeypatch.setattr(late.journal, "state", lambda *_: stored)
    assert world.look().requests == 250
    report = look(late)
    assert "somebody else was first" in report.reason
    assert (report.outcome, report.requests) == ("INCONCLUSIVE", 0)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("effect", range(1, 9))
def test_a_watch_killed_anywhere_ends_in_the_same_rollback(world: World, effect: int, after: bool) -> None:
    world.watched()
    world.endpoint.behave("2", failing(0.3))
    world.seconds(5)
    with contextlib.suppress(Killed):
        look(world.bench(Deadline(effect, after=after)))
    for _ in range(3):
        world.seconds(5)
        world.look()
    transitions.finish(world.bench())
    assert world.serving() == ("1", 0)
    world.consistent()
    kept = world.journal.state("flights", WATCH)
    assert kept is not None
    assert sum(bucket[2] for bucket in kept.value["buckets"]) <= world.sent, "no request counts twice"


def test_every_request_counts_once_over_many_processes(world: World) -> None:
    world.look()
    before = world.sent
    for _ in range(30):
        world.seconds(5)
        world.look()
    kept = world.journal.state("flights", WATCH)
    assert kept is not None
    assert sum(bucket[2] for bucket in kept.value["buckets"]) == world.sent - before


def test_a_platform_that_is_away_is_an_error_and_told_when_it_stays_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.watched()

    def away(*_: object, **__: object) -> None:
        raise PlatformUnavailable("the gateway does not answer")

    monkeypatch.setattr(world.endpoint, "observations", away)
    world.clock.now += 10
    assert world.look().outcome == "ERROR"
    assert world.alerts() == []
    world.clock.now += 600
    assert world.look().outcome == "ERROR"
    assert "the watch is blind" in world.alerts()[0]


def test_latency_harm_goes_back_too(tmp_path: Path) -> None:
    world = World(tmp_path, latency_ms={"p95": 50}).watched()
    world.endpoint.behave("2", lambda body: Reply(200, b"1", 90.0 if int(body) % 4 == 0 else 2.0))
    world.seconds(5)
    report = world.look()
    assert report.step == "ROLL_BACK", report
    assert "latency/p95" in report.reason


def test_a_journal_that_is_away_is_an_error_of_the_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.watched()
    bench = world.bench()

    def away(*_: object, **__: object) -> None:
        raise PlatformUnavailable("the journal does not answer")

    for name in ("endpoint", "state"):
        monkeypatch.setattr(bench.journal, name, away)
    report = look(bench)
    assert (report.outcome, report.reason) == ("ERROR", "the journal does not answer")
