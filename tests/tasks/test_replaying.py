"""Decisions made again: from the journal of releases that ran, with everything but counts gone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from evals.decisions import Difference, Recorded
from evals.verdict import Outcome, Verdict
from serving.errors import Refused
from serving.journal_schema import LOOKS, RELEASES
from serving.records import LookRow, ReleaseState, Stage
from tasks import ramp, transitions
from tasks.documents import decisions
from tasks.evaluation import evaluate_candidate
from tasks.ramp import run_canary
from tasks.release import Release, open_release
from tasks.replaying import KEPT, ReleaseRecord, ReplayTold, read_record, replay_release
from tasks.shadowing import run_shadow
from tests.flows.world import Version, World, failing
from tests.tasks import test_watching
from tests.tasks.test_transitions import POLICY


def served(folder: Path) -> World:
    """An endpoint whose champion is version 1."""
    made = World(folder)
    shadow = made.policy.shadow.model_copy(update={"min_pairs": 700})
    made.policy = made.policy.model_copy(update={"shadow": shadow})
    made.add("1", Version(skill=0.8))
    release(made, "1")
    made.clock.now += 60
    return made


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of its own."""
    return served(tmp_path)


@dataclass
class Promoted:
    """One promotion for the tests that only look at it, or change it and change it back."""

    world: World
    document: dict[str, Any]


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Promoted:
    """Version 2 became the champion."""
    made, documents = served(tmp_path_factory.mktemp("promoted")), []
    made.add("2", Version())
    assert release(made, "2", document=documents).passed
    return Promoted(made, documents[0])


def release(world: World, version: str, *, document: list[dict[str, Any]] | None = None) -> Verdict:
    """The stages of flows/release.py without Prefect: the same tasks, journal and decisions."""
    bench = world.bench()
    with open_release(bench, version, again=False, reason="", flow_run_id="", owner="test") as run:
        verdict = conclude(run, Stage.EVALUATE, evaluate_candidate(run))
        row = transitions.place(bench, run.row, first=run.first)
        run.placed_cursor = bench.endpoint.observations(None).cursor
        if not run.first:
            verdict = conclude(run, Stage.SHADOW, run_shadow(run))
            if verdict.passed:
                run.enter(Stage.CANARY)
                verdict = conclude(run, Stage.CANARY, run_canary(run, row))
        if verdict.passed:
            run.enter(Stage.PROMOTE)
            transitions.promote(bench, run.check(), who="test", reason=verdict.reason, first=run.first)
        elif verdict.failed:
            state, at = ReleaseState.REJECTED, bench.clock()
            transitions.reject(bench, run.row, state=state, who="test", reason=verdict.reason, at=at)
        if document is not None:
            run.row = world.newest()
            document.append(decisions(run))
    return verdict


def conclude(run: Release, stage: Stage, verdict: Verdict) -> Verdict:
    """Keep a stage's verdict, as the flow does."""
    run.row = run.bench.journal.update_release(
        run.row.id, run.row.owner, now=run.bench.clock(), stage=stage.value
    )
    run.conclude(stage, verdict)
    return verdict


def replayed(world: World, name: str = "") -> ReplayTold:
    return replay_release(read_record(world.settings, name or world.newest().id))


@contextmanager
def changed(world: World, table: sa.Table, of: Any, **values: Any) -> Iterator[None]:
    """Somebody edits the database; afterwards it is as it was."""
    engine = sa.create_engine(world.settings.journal)
    columns = [table.c[name] for name in values]

    def store(kept: Mapping[str, Any]) -> None:
        with engine.begin() as connection:
            connection.execute(sa.update(table).where(of).values(**kept))

    with engine.connect() as connection:
        before = connection.execute(sa.select(*columns).where(of)).mappings().one()
    store(values)
    yield
    store(before)
    engine.dispose()


def changed_look(world: World, look: LookRow, **changes: Any) -> AbstractContextManager[None]:
    of = (LOOKS.c.stage == look.stage) & (LOOKS.c.number == look.number)
    of &= LOOKS.c.release_id == look.release_id
    return changed(world, LOOKS, of, stats={**look.stats, **changes})


def test_every_decision_of_a_promotion_comes_out_as_it_was_stored(promoted: Promoted, tmp_path: Path) -> None:
    told = replayed(promoted.world)
    assert told.same, told
    by_stage = {stage.stage: stage for stage in told.stages}
    assert list(by_stage) == ["evaluate", "shadow", "canary", "release"]
    assert [stage.how for stage in told.stages] == ["combined", "recomputed", "recomputed", "combined"]
    assert by_stage["canary"].outcome == "PASS"
    for stage in ("shadow", "canary"):
        assert by_stage[stage].checked == by_stage[stage].looks > 5
    assert told.engine_then == told.engine_now != ""
    assert 10_000 < told.size_bytes < 1_000_000

    # The document in the release's MLflow run is a record of its own.
    path = tmp_path / "decisions.json"
    path.write_text(json.dumps(promoted.document))
    assert replay_release(read_record(promoted.world.settings, str(path))).stages == told.stages


def test_a_rejected_canary_and_a_rejected_shadow_come_out_again(world: World) -> None:
    world.add("2", Version(answer=failing(0.3)))
    assert release(world, "2").failed
    shadowed = replayed(world)
    assert (shadowed.same, shadowed.state) == (True, "REJECTED")
    world.add("3", Version())

    def worsen() -> None:
        if world.serving()[1] > 0:
            world.versions["3"].answer = failing(0.33)

    world.on_second = worsen
    assert release(world, "3").failed
    told = replayed(world)
    assert told.same, told
    assert [(stage.stage, stage.outcome) for stage in told.stages[1:]] == [
        ("shadow", "PASS"),
        ("canary", "FAIL"),
        ("release", "REJECTED"),
    ]
    assert replayed(world, shadowed.release).same, "an older release, with another one after it"


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_the_first_look_that_differs_is_named(promoted: Promoted, stage: str) -> None:
    world = promoted.world
    look = world.journal.looks(world.newest().id, stage)[4]
    if stage == "canary":
        groups = [{**group, "entered": [0, 0], "candidate": {}} for group in look.stats["groups"]]
        edited = changed_look(world, look, groups=groups)
    else:
        edited = changed_look(world, look, counts={**look.stats["counts"], "candidate_bad": 1})
    with edited:
        told = replayed(world)
    assert not told.same
    found = difference(told, stage)
    assert found.look == look.number
    assert found.stored != found.recomputed
    assert replayed(world).same


def difference(told: ReplayTold, stage: str) -> Difference:
    found = next(one.difference for one in told.stages if one.stage == stage)
    assert found is not None
    return found


def test_a_share_that_no_decision_granted_is_named(promoted: Promoted) -> None:
    world = promoted.world
    look = world.journal.looks(world.newest().id, "canary")[3]
    with changed_look(world, look, step=2):
        found = difference(replayed(world), "canary")
    assert found.look == look.number
    assert "step 3" in found.stored


def test_a_changed_verdict_and_a_changed_ending_are_named(promoted: Promoted) -> None:
    world, row = promoted.world, promoted.world.newest()
    kept, of = row.verdicts, RELEASES.c.id == row.id
    edited = {**kept, "canary": {**kept["canary"], "reason": "trust me"}}
    with changed(world, RELEASES, of, verdicts=edited):
        found = difference(replayed(world), "canary")
    assert found.look is None
    assert "trust me" in found.stored
    edited = {**kept, "evaluate": {**kept["evaluate"], "outcome": "FAIL"}}
    with changed(world, RELEASES, of, verdicts=edited):
        told = replayed(world)
    assert "FAIL" in difference(told, "evaluate").stored
    assert "evaluate is FAIL" in difference(told, "release").recomputed


def test_nothing_but_the_journal_is_read_and_it_names_nobody(promoted: Promoted) -> None:
    world = promoted.world
    frame = world.endpoint.observations("0").frame
    looks = [look for stage in KEPT for look in world.journal.looks(world.newest().id, stage)]
    record = json.dumps([dict(look.stats) for look in looks])
    assert not [user for user in set(frame["user"]) if user in record]
    assert not [request for request in set(frame["request_id"]) if request in record]
    kept, world.endpoint = world.endpoint, None  # type: ignore[assignment]
    assert replayed(world).same
    world.endpoint = kept


def test_a_canary_begins_with_a_plan_and_a_warm_up(promoted: Promoted) -> None:
    world = promoted.world
    [planned] = [line for line in world.journal.audit("flights", limit=500) if line.what == "ramp planned"]
    assert len(planned.details["steps"]) == 4
    # No champion error was seen, and twice nothing is within the policy's tolerance.
    assert planned.details["steps"][0].startswith(
        "5%: 2 times the errors caught never, no more errors shown in"
    )
    head, *looks = world.journal.looks(world.newest().id, "canary")
    assert [step["share"] for step in head.stats["plan"]] == [5, 25, 50, 95]
    until = looks[0].stats["warm_until"]
    assert until == head.time + world.policy.canary.warm_up_s
    early = [look for look in looks if look.time < until - world.policy.canary.window.seconds]
    late = [look for look in looks if look.time > until + 2]
    for part, has_slow in ((early, False), (late, True)):
        levels = {
            level
            for look in part
            for group in look.stats["groups"]
            for level in group["champion"].get("margin/p50", ())
        }
        assert ("20" in levels) is has_slow


def test_a_look_in_which_nothing_came_is_not_kept(world: World) -> None:
    world.add("2", Version())
    silent_s = [0]

    def fall_silent() -> None:
        world.requests_per_s = 60
        if world.serving()[1] > 0 and silent_s[0] < 60:
            world.requests_per_s = 0
            silent_s[0] += 1

    world.on_second = fall_silent
    assert release(world, "2").passed
    times = [look.time for look in world.journal.looks(world.newest().id, "canary")]
    assert max(np.diff(times)) > 55
    assert replayed(world).same


def test_a_canary_that_has_had_all_its_looks_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ramp, "LOOKS_MAX", 8)
    world.add("2", Version())
    verdict = release(world, "2")
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.reason.startswith("no decision within 8 looks")
    assert len(world.journal.looks(world.newest().id, "canary")) == 9
    assert replayed(world).same


def test_evidence_against_a_champion_that_is_gone_does_not_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ramp, "LOOKS_MAX", 8)
    world.add("2", Version())
    assert release(world, "2").outcome is Outcome.INCONCLUSIVE
    held = world.newest()
    bench = world.bench()
    transitions.make_safe(bench, held, who="test", reason="held", state=ReleaseState.HELD)
    before = world.journal.looks(held.id, "canary")
    # Meanwhile another champion came: as `open_release` would find it.
    with open_release(bench, "2", again=False, reason="", flow_run_id="", owner="next") as run:
        now = world.clock.now
        run.row = world.journal.update_release(run.row.id, "next", now=now, champion="1b")
        run.placed_cursor = "0"
        begun = ramp._restore(run, bench.row())
    assert begun.number == before[-1].number + 1
    heads = [look for look in world.journal.looks(held.id, "canary") if "thresholds" in look.stats]
    assert [look.stats["champion"] for look in heads] == ["1", "1b"]
    assert replayed(world).same, "the looks of before are judged by themselves"


def test_an_unknown_release_is_refused_with_the_next_step(world: World) -> None:
    with pytest.raises(Refused, match="interlock history"):
        read_record(world.settings, "flights-v9-1")


@pytest.mark.parametrize("both", [False, True])
def test_a_watchs_decision_comes_out_again_from_what_it_was_made_from(tmp_path: Path, both: bool) -> None:
    watched = test_watching.World(tmp_path).watched()
    for version in ("1", "2")[0 if both else 1 :]:
        watched.endpoint.behave(version, test_watching.failing(0.2))
    watched.seconds(5)
    decided = "ALERT" if both else "ROLL_BACK"
    assert watched.look().step == decided
    name = watched.journal.releases("flights", version="2")[0].id
    told = replay_release(read_record(watched.settings, name))
    assert told.same, told
    by_watch = next(stage for stage in told.stages if stage.stage == "watch")
    assert (by_watch.how, by_watch.outcome, by_watch.looks) == ("recomputed", decided, 1)
    [look] = watched.journal.looks(name, "watch")
    assert len(json.dumps(look.stats)) < 4000
    engine = sa.create_engine(watched.settings.journal)
    cells = {"errors": {"neither": 300, "champion_only": 0, "previous_only": 0, "both": 0}}
    with engine.begin() as connection:
        connection.execute(sa.update(LOOKS).values(stats={**look.stats, "cells": cells}))
    engine.dispose()
    found = difference(replay_release(read_record(watched.settings, name)), "watch")
    assert (found.look, found.stored.partition(":")[0]) == (1, decided)


def test_a_load_test_under_a_policy_of_long_ago_is_reported_as_it_was_stored() -> None:
    policy = POLICY.model_dump(mode="json") | {"serving": {"engine": {"waiting": 4}}}
    verdict = {"outcome": "PASS", "reason": "borne", "findings": []}
    record = ReleaseRecord(
        "flights-v2-1", "ABORTED", "", "", policy, {"stage": verdict}, {"stage": [Recorded(1, 1.0, {})]}, 1
    )
    told = replay_release(record).stages[0]
    assert (told.how, told.outcome, told.reason, told.difference) == ("reported", "PASS", "borne", None)
    assert "refused by now" in told.note
