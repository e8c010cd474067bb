"""Measures of language models after the promotion: broken budgets are told, and move nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.endpoint import Observations
from tasks.replaying import read_record, replay_release
from tests.tasks.test_watching import World


def test_slow_first_tokens_are_told_and_move_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, measures={"ttft_ms": {"budget": {"p95": 800}}})
    first_ms = {"2": 300.0}
    read = world.endpoint.observations

    def observations(*args: Any, **kwargs: Any) -> Observations:
        """As a platform of language models has them."""
        seen = read(*args, **kwargs)
        return replace(seen, frame=seen.frame.assign(ttft_ms=seen.frame["version"].map(first_ms)))

    world.endpoint.observations = observations  # type: ignore[method-assign]
    world.watched()
    first_ms["2"] = 900.0
    asked = world.endpoint.calls.count("invoke")
    world.seconds(5)
    report = world.look()
    assert (report.outcome, report.step) == ("FAIL", "ALERT"), report
    assert "time to first token, ms: 100.0% of 250 requests were over 800" in world.alerts()[0]
    assert "replays do not show it" in world.alerts()[0]
    assert 'interlock rollback flights --reason "..."' in report.next_step
    assert world.endpoint.calls.count("invoke") == asked, "nobody was asked in vain"
    assert world.serving() == ("2", 0)
    release = world.journal.releases("flights", version="2")[0].id
    told = replay_release(read_record(world.settings, release))
    by_watch = next(stage for stage in told.stages if stage.stage == "watch")
    assert (by_watch.outcome, told.same) == ("ALERT", True)
