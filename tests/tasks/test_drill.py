"""Drills that fail, or do not take place, are told; which fault is rehearsed when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.drill import Drill, Fault
from configs.settings import Settings
from serving.errors import Refused
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
