"""Promotion and rollback killed before each effect, map file and map command among them; then `reconcile`.

The journal is SQLite, gateway and replicas are real processes, MLflow's aliases are in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.gateway import plane
from serving.gateway.maps import GRANT_MAP, ROUTE_MAP, read_map
from serving.journal import Journal
from serving.local import LocalEndpoint
from serving.records import ReleaseRow, ReleaseState
from tasks import sweeping, transitions
from tasks.bench import Bench
from tasks.release import open_release
from tests.serving.gateway.lab import Lab, lab_policy
from tests.tasks.doubles import Deadline, Killed, MemoryMessenger, MemoryRegistry, Mortal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Story:
    """One endpoint whose champion is version 1, and the processes that work on it."""

    def __init__(self, lab: Lab, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.name = name
        self.registry = MemoryRegistry()
        self.policy = lab_policy(name)
        self._monkeypatch = monkeypatch
        self._write_map = plane.write_map
        monkeypatch.setattr(Bench, "open", classmethod(lambda *_: self.bench()))
        monkeypatch.setattr(sweeping.notices, "free_dead_owner", lambda _bench: None)
        release = self.release("1")
        transitions.place(self.bench(), release, first=True)
        transitions.promote(self.bench(), release, who="test", reason="first", first=True)

    def bench(self, deadline: Deadline | None = None) -> Bench:
        """A fresh process, mortal in everything that it does to the world."""
        endpoint: LocalEndpoint = self.lab.endpoint(self.name)
        journal: Any = Journal(self.lab.settings.journal)
        registry: Any = self.registry
        messenger: Any = MemoryMessenger()
        guard: Callable[[Any], Any] = deadline.guard if deadline else lambda effect: effect
        self._monkeypatch.setattr(plane, "write_map", guard(self._write_map))
        if deadline is not None:
            journal = Mortal(journal, deadline, ("change", "end_release", "record", "record_once"))
            registry = Mortal(registry, deadline, ("point", "unpoint", "tag"))
            runtime: Any = Mortal(endpoint._plane._runtime, deadline, ("set_map", "delete_map"))
            endpoint._plane._runtime = runtime
        mortal: Any = Mortal(endpoint, deadline, ("retire",)) if deadline else endpoint
        bench = Bench(
            self.policy,
            self.lab.settings,
            endpoint=mortal,
            registry=registry,
            messenger=messenger,
            clock=time.time,
            sleep=time.sleep,
        )
        bench.__dict__["journal"] = journal
        return bench

    def release(self, version: str) -> ReleaseRow:
        bench, run = self.bench(), f"run-{version}-{time.monotonic_ns()}"
        return open_release(bench, version, again=True, reason="test", flow_run_id=run, owner="me").row

    def ramping(self, version: str) -> ReleaseRow:
        """A release whose candidate holds a quarter."""
        self.registry.aliases["candidate"] = version
        release = self.release(version)
        row = transitions.place(self.bench(), release, first=False)
        transitions.grant(self.bench(), row, 25)
        return release

    def promotion(self, version: str) -> Callable[[Bench], object]:
        release = self.ramping(version)
        return lambda bench: transitions.promote(bench, release, who="test", reason="good")

    def rejection(self, version: str) -> Callable[[Bench], object]:
        release = self.ramping(version)
        return lambda bench: transitions.reject(
            bench, release, state=ReleaseState.REJECTED, who="test", reason="errors", at=time.time()
        )

    def undoing(self, version: str) -> Callable[[Bench], object]:
        self.promotion(version)(self.bench())
        return lambda bench: transitions.return_to_previous(
            bench, None, who="test", reason="harm", at=time.time(), proven=self.bench().row().other_version
        )

    def is_one_story(self, champion: str) -> None:
        """Journal, map files, what the worker applies, what clients get, and aliases."""
        row = self.bench().row()
        assert (row.champion, row.intent, row.share_bp) == (champion, None, 0)
        state = self.lab.endpoint(self.name).describe()
        assert state.route is not None
        assert state.route.generation == row.generation
        for name in (ROUTE_MAP, GRANT_MAP):
            file = read_map(Path(self.lab.settings.gateway_dir) / name)
            worker = self.lab.runtime.show_map(name)
            mine = {key for key in {*file, *worker} if key.split("#")[0] == self.name}
            assert {key: file.get(key) for key in mine} == {key: worker.get(key) for key in mine}
        answer = self.lab.ask(path=f"/{self.name}/invocations", headers={"x-user-id": "ann"})
        assert (answer.status, answer.version) == (200, champion)
        assert self.registry.aliases["champion"] == champion
        assert champion not in (self.registry.aliases.get("candidate"), self.registry.aliases.get("previous"))


@pytest.mark.parametrize("kind", ["promotion", "rejection", "undoing"])
def test_reconcile_makes_one_story_of_a_change_that_was_killed_anywhere(
    lab: Lab, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(lab, f"killed-{kind}", monkeypatch)
    number, version = 0, 1
    while True:
        number, version = number + 1, version + 1
        champion = story.bench().row().champion
        change = getattr(story, kind)(str(version))
        wanted = str(version) if kind == "promotion" else champion
        try:
            change(story.bench(Deadline(number, after=False)))
        except Killed:
            pass
        else:
            break  # it has fewer effects
        intended = story.bench().row().intent is not None
        sweeping.sweep_endpoint.fn(story.name)
        if not intended and story.bench().journal.open_release(story.name) is not None:
            change(story.bench())  # nothing was decided: the flow, run again, decides
        elif not intended and story.bench().row().champion != wanted:
            change(story.bench())
        story.is_one_story(wanted)
    assert number > 10
    story.is_one_story(wanted)
    lab.forget(story.name)
