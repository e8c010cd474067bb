"""What is told at each turn of a release: once, at the right urgency, with the policy's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.policy import Policy
from serving.records import ReleaseState
from tasks import rolling_back, transitions
from tests.tasks.doubles import Deadline, Killed
from tests.tasks.test_transitions import POLICY, World

TEXT = "Dear clients, {model} {was} is gone, {now} answers again. {reason} ({who}, {stage})"


class Told(World):
    """A world whose policy has a communication."""

    def bench(self, deadline: Deadline | None = None) -> Any:
        bench = super().bench(deadline)
        notify = {"rollback": {"to": ["file:clients"], "text": TEXT}, "critical": ["env:PAGER"]}
        bench.policy = Policy.model_validate(POLICY.model_dump() | {"notify": notify})
        return bench


@pytest.fixture
def world(tmp_path: Path) -> Told:
    made = Told(tmp_path)
    made.first_champion()
    return made


def told(world: Told) -> list[tuple[str, str]]:
    return [(one.severity, one.what) for one in world.messenger.sent]


def test_a_promotion_is_news(world: Told) -> None:
    assert told(world) == [("info", "version 1 is the champion: first")]


def test_a_rollback_of_the_champion_is_critical_and_sends_the_policys_communication(world: Told) -> None:
    release, _ = world.ramping()
    transitions.promote(world.bench(), release, who="flow", reason="proven")
    world.messenger.sent.clear()
    rolling_back.roll_back(world.bench(), who="ann", reason="complaints")
    (one,) = world.messenger.sent
    assert one.severity == "critical"
    assert one.what == "Dear clients, late 2 is gone, 1 answers again. complaints (ann, watch)"
    assert one.addresses == ("env:PAGER", "file:clients")


@pytest.mark.parametrize(("stage", "addresses"), [("shadow", ()), ("canary", ("file:clients",))])
def test_clients_hear_of_a_rejection_only_where_they_had_been_answered(
    world: Told, stage: str, addresses: tuple[str, ...]
) -> None:
    release, _ = world.ramping()
    release = world.journal.update_release(release.id, "me", now=world.clock(), stage=stage)
    transitions.reject(
        world.bench(), release, state=ReleaseState.REJECTED, who="flow", reason="errors", at=world.clock()
    )
    one = world.messenger.sent[-1]
    assert (one.severity, one.addresses) == ("warning", addresses)
    assert one.what.startswith("Dear clients" if addresses else "version 2 was rejected: errors")


def test_a_stop_without_a_verdict_says_how_to_go_on(world: Told) -> None:
    release, _ = world.ramping()
    transitions.make_safe(world.bench(), release, who="make-safe", reason="its flow run died")
    one = world.messenger.sent[-1]
    assert one.severity == "warning"
    assert one.what == "the release of version 2 was interrupted at share 0: its flow run died"
    assert one.next_step == "interlock resume flights, or interlock abort flights"


def test_killed_anywhere_a_rollback_is_told_once_at_least_and_never_twice_in_the_trail(
    tmp_path: Path,
) -> None:
    for at in range(1, 40):
        for after in (False, True):
            world = Told(tmp_path / f"{at}{after}")
            world.first_champion()
            release, _ = world.ramping()
            deadline = Deadline(at, after=after)
            reject: Any = {"state": ReleaseState.ROLLED_BACK, "who": "ann", "reason": "x", "at": 5.0}
            try:
                transitions.reject(world.bench(deadline), release, **reject)
                survived = True
            except Killed:
                survived = False
                now = world.journal.release(release.id)
                if world.bench().row().intent is None and now is not None and not now.state.final:
                    transitions.reject(world.bench(), release, **reject)
                else:
                    transitions.finish(world.bench())
            lines = world.journal.audit("flights", what=("alert",))
            critical = [one for one in lines if one.details["severity"] == "critical"]
            assert len(critical) == 1, (at, after)
            if survived:
                return
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize(
    ("reason", "steps"),
    [
        ("no data", "interlock resume flights, or interlock abort flights"),
        (
            "canary is ERROR: telemetry is missing: the candidate reported 3 of 90 units",
            "mend that, then interlock abort flights, and interlock release flights 2 anew",
        ),
    ],
)
def test_a_release_on_hold_is_resumed_unless_its_records_stay_incomplete(
    world: Told, reason: str, steps: str
) -> None:
    release, _ = world.ramping()
    transitions.make_safe(world.bench(), release, who="flow", reason=reason, state=ReleaseState.HELD)
    assert world.messenger.sent[-1].next_step == steps
