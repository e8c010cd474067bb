"""What the sweep starts: a candidate that no event has started, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import sweeping
from tests.tasks.test_watching import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(sweeping.Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    return made


def test_a_missed_candidate_is_started_once_while_its_run_is_on_its_way(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(_settings: object, _endpoint: str, version: str, *, reason: str) -> str:
        assert "found by the sweep" in reason
        started.append(version)
        return "http://127.0.0.1/run"

    monkeypatch.setattr(sweeping, "start_release", start)
    sweep = sweeping.start_missed_release.fn
    assert sweep("flights") == []
    world.registry.aliases["candidate"] = "3"
    assert sweep("flights") == [], "its event may be on its way"
    assert "started the release of version 3" in sweep("flights")[0]
    world.clock.now += 60
    assert sweep("flights") == [], "a busy Prefect takes its time"
    assert started == ["3"]
    world.clock.now += 600
    sweep("flights")
    assert started == ["3", "3"], "a run that never claimed its release is given up"
