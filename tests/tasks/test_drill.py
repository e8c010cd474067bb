"""Drills that fail, or do not take place, are told; which fault is rehearsed when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.drill import Drill, Fault
from configs.settings import Settings
from serving.atomic import timed_lock
from serving.errors import NotHealthy, Refused
from serving.gateway.keys import Keys
from serving.records import ReleaseState
from tasks import drill, drill_flow
from tasks.bench import Bench
from tasks.drill import DRILLED, DrillResult, chosen_faults, next_fault
from tasks.drill_traffic import Answer, DrillTraffic
from tasks.endings import named_state
from tests.tasks.doubles import HandClock, MemoryMessenger, MemoryRegistry
from tests.tasks.test_transitions import POLICY, World


class Runs:
    """MLflow's runs, of which nothing is asked here."""

    def open_run(self, *_: Any) -> str:
        return "run"

    def log_points(self, *_: Any) -> None:
        pass

    log_text = log_points


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    doubles: dict[str, Any] = {
        "registry": MemoryRegistry(),
        "messenger": MemoryMessenger(),
        "runs": Runs(),
        "clock": HandClock(),
    }
    policy = POLICY.model_copy(update={"drill": Drill(faults=("errors", "slow-tail", "bad-outputs"))})
    made = Bench(policy, Settings(state_dir=tmp_path, policy_dir=tmp_path), **doubles)

    def opened(_name: str, _settings: Settings | None = None) -> Bench:
        return made

    monkeypatch.setattr(Bench, "open", opened)
    return made


def result(fault: str, *problems: str) -> DrillResult:
    return DrillResult(
        endpoint="flights",
        fault=fault,
        version="7",
        champion="1",
        state="REJECTED",
        stage="canary",
        stopped_s=4.0,
        traffic_s=3.2,
        failed=20,
        requests=548,
        reason="errors",
        problems=problems,
    )


def told(bench: Bench) -> list[tuple[str, str]]:
    messenger: Any = bench.messenger
    return [(str(one.severity), one.what) for one in messenger.sent]


def test_a_failed_drill_is_a_record_and_a_critical_alert(bench: Bench) -> None:
    drill.keep(bench, result("errors", "version 7 was promoted", "version 7 still has a slot"))
    (line,) = bench.journal.audit("flights", what=(DRILLED,))
    assert line.details["passed"] is False
    ((severity, what),) = told(bench)
    assert severity == "critical"
    assert what == ("the drill failed: errors, version 7: version 7 was promoted; version 7 still has a slot")


def test_a_passed_drill_is_a_record_and_no_alert(bench: Bench) -> None:
    drill.keep(bench, result("errors"))
    assert [line.details["fault"] for line in bench.journal.audit("flights", what=(DRILLED,))] == ["errors"]
    assert told(bench) == []


def test_a_scheduled_drill_that_is_refused_is_a_critical_alert(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> DrillResult:
        raise Refused("flights: flights-v7-1 is open")

    monkeypatch.setattr(drill_flow, "run_drill", busy)
    with pytest.raises(Refused):
        drill_flow.drill_endpoint.fn("flights")
    assert told(bench) == [("critical", "the drill did not take place: flights: flights-v7-1 is open")]


def test_a_failed_drill_fails_its_flow_run_and_cancels_none() -> None:
    state = named_state("DrillFailed", "errors was promoted")
    assert (state.type.value, state.name) == ("FAILED", "DrillFailed")


def test_the_fault_that_was_rehearsed_longest_ago_comes_next(bench: Bench) -> None:
    clock: Any = bench.clock
    assert next_fault(bench) == "errors"
    for fault in ("errors", "bad-outputs", "slow-tail", "errors"):
        clock.now += 60
        drill.keep(bench, result(fault))
    assert next_fault(bench) == "bad-outputs"
    assert chosen_faults(bench, [], every=False) == ["bad-outputs"]
    assert chosen_faults(bench, [], every=True) == ["errors", "slow-tail", "bad-outputs"]
    with pytest.raises(Refused, match="no fault is called 'earthquake'"):
        chosen_faults(bench, ["earthquake"], every=False)


@pytest.mark.parametrize(
    ("fault", "state", "problem"),
    [
        ("errors", ReleaseState.REJECTED, None),
        ("errors", ReleaseState.INTERRUPTED, "its release ended INTERRUPTED, it must be REJECTED: went away"),
        ("lost-telemetry", ReleaseState.HELD, "its release ended HELD, it must be REJECTED: went away"),
        ("lost-telemetry", ReleaseState.REJECTED, None),
        ("bad-outputs", ReleaseState.ABORTED, "its release ended ABORTED, it must be REJECTED: went away"),
        ("crash-on-start", ReleaseState.INTERRUPTED, None),
        ("crash-mid-canary", ReleaseState.INTERRUPTED, None),
        ("crash-mid-canary", ReleaseState.REJECTED, None),
        ("crash-on-start", ReleaseState.HELD, "its release ended HELD, it must be REJECTED: went away"),
        ("slow-tail", ReleaseState.PROMOTED, "version 2 was promoted"),
        ("slow-tail", ReleaseState.RUNNING, "not stopped within 9 s; the drill aborted it"),
    ],
)
def test_every_fault_must_be_found_bad_and_only_a_crash_may_interrupt(
    tmp_path: Path, fault: Fault, state: ReleaseState, problem: str | None
) -> None:
    world = World(tmp_path)
    world.first_champion()
    ended = replace(world.release("2"), state=state, reason="went away")
    seen = DrillTraffic([Answer(100, 200, "1", 5)])
    found = drill._problems(world.bench(), fault, ended, "1", seen, after=90, stopped_s=9)
    assert found == [problem] * (problem is not None)


def test_lost_telemetry_may_be_held_for_its_missing_records_only(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.first_champion()
    seen = DrillTraffic([Answer(100, 200, "1", 5)])
    reason = "telemetry is missing: the candidate reported 3 of 90 units where about 22 were assigned to it"
    ended = replace(world.release("2"), state=ReleaseState.HELD, reason=reason)
    for fault, problems in (("lost-telemetry", 0), ("errors", 1)):
        found = drill._problems(world.bench(), fault, ended, "1", seen, after=90, stopped_s=9)
        assert len(found) == problems, found


class Theatre:
    """A drill endpoint whose champion is version 1; every registered version is the next number."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = World(folder)
        self.world.first_champion()
        self.keys = Keys(self.world.settings)
        policy_dir = folder / "policies"
        policy_dir.mkdir()
        self.world.settings = self.world.settings.model_copy(update={"policy_dir": policy_dir})
        self.during: list[str] = []
        monkeypatch.setattr(drill, "register_version", lambda *_: "2")
        monkeypatch.setattr(drill, "traffic", self._traffic)
        monkeypatch.setattr(drill, "_rehearse", self._rehearse)
        self.ends = NotHealthy("its release is in its canary")
        self.begins = True

    def run(self) -> None:
        bench = self.world.bench()
        bench.policy = bench.policy.model_copy(update={"drill": Drill()})
        drill.run_drill(bench, "errors")

    @contextmanager
    def _traffic(self, *_: Any, **__: Any) -> Iterator[DrillTraffic]:
        yield DrillTraffic()

    def _rehearse(self, bench: Bench, *_: Any) -> DrillResult:
        self.during = [key.tenant for key in self.keys.every()]
        bench.registry.point(bench.policy.model, "candidate", "2")
        if self.begins:
            release = self.world.release("2")
            bench.journal.end_release(release.id, state=ReleaseState.HELD, reason="no data", now=1e9)
        raise self.ends


@pytest.fixture
def theatre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Theatre:
    return Theatre(tmp_path, monkeypatch)


@pytest.mark.parametrize("begins", [True, False])
def test_a_drill_that_fails_early_leaves_no_release_no_candidate_and_no_key(
    theatre: Theatre, begins: bool
) -> None:
    theatre.begins = begins
    with pytest.raises(NotHealthy):
        theatre.run()
    assert theatre.world.journal.open_release("flights") is None
    assert [one.state for one in theatre.world.journal.releases("flights", version="2")] == [
        ReleaseState.ABORTED
    ] * begins
    assert "candidate" not in theatre.world.registry.aliases
    assert theatre.keys.every() == []


def test_the_key_of_a_drill_that_was_killed_goes_with_the_next_drill(theatre: Theatre) -> None:
    left = theatre.keys.create("interlock-drill-flights")
    theatre.keys.create("somebody-else")
    with pytest.raises(NotHealthy):
        theatre.run()
    assert sorted(theatre.during) == ["interlock-drill-flights", "somebody-else"]
    assert [key.tenant for key in theatre.keys.every()] == ["somebody-else"]
    assert left


def test_two_drills_of_one_endpoint_do_not_take_each_others_key(theatre: Theatre) -> None:
    with timed_lock(theatre.world.settings.state / "drills" / "flights.lock", wait_s=0):
        theatre.keys.create("interlock-drill-flights")
        with pytest.raises(Refused, match="is being drilled"):
            theatre.run()
    assert len(theatre.keys.every()) == 1


def test_a_release_that_ends_before_its_canary_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.first_champion()
    monkeypatch.setattr(drill, "register_version", lambda *_: "2")
    release = world.release("2")
    rejected = {"state": ReleaseState.REJECTED, "reason": "the rows have changed"}
    world.journal.end_release(release.id, now=world.clock.now, **rejected)  # type: ignore[arg-type]
    began = world.clock.now
    with pytest.raises(
        NotHealthy, match="ended as REJECTED before its canary: the rows have changed; no fault"
    ):
        drill._rehearse(world.bench(), Drill(), "errors", "1", tmp_path / "switch", DrillTraffic())
    assert world.clock.now - began < 1
