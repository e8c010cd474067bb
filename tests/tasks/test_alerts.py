"""Alerts: written once, told once, and never in the way of what raised them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.settings import Settings
from serving.errors import PlatformUnavailable
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.messenger import EVENT, event_body
from tests.tasks.doubles import HandClock, MemoryMessenger, MemoryRegistry
from tests.tasks.test_transitions import POLICY


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    clock = HandClock()
    registry: Any = MemoryRegistry()
    messenger: Any = MemoryMessenger()
    return Bench(POLICY, Settings(state_dir=tmp_path), registry=registry, messenger=messenger, clock=clock)


def tell(bench: Bench, severity: Any = "warning", key: str = "drift", **numbers: Any) -> None:
    alert(bench, severity, "inputs drift", numbers=numbers, next_step="look at the report", key=key)


def sent(bench: Bench) -> list[Any]:
    messenger: Any = bench.messenger
    return messenger.sent


def test_an_alert_is_a_line_of_the_trail_a_line_of_the_log_and_a_message(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "interlock.alerts"):
        tell(bench, columns=3, score=np.float64(0.25), rows=np.int64(7))
    (line,) = bench.journal.audit("flights")
    assert (line.what, line.who, line.time) == ("alert", "interlock", bench.clock())
    assert line.details["message"] == "inputs drift"
    assert line.details["numbers"] == {"columns": 3, "score": 0.25, "rows": 7}
    assert line.details["owner"] == "me@example.com"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message == (
        "flights: inputs drift (columns 3, score 0.25, rows 7). Next: look at the report"
    )
    assert [one.what for one in sent(bench)] == ["inputs drift"]


def test_the_same_news_is_told_once_in_the_policys_window(bench: Bench) -> None:
    clock: Any = bench.clock
    for _ in range(3):
        tell(bench)
        clock.now += 1199
    assert len(sent(bench)) == 1
    clock.now += 10
    tell(bench)
    tell(bench, key="another")
    assert [one.key for one in sent(bench)] == ["drift", "drift", "another"]


def test_news_that_got_worse_is_told_at_once_and_milder_news_is_not(bench: Bench) -> None:
    for severity in ("warning", "info", "critical", "warning"):
        tell(bench, severity)
    assert [one.severity for one in sent(bench)] == ["warning", "critical"]


class Away:
    """A journal that does not answer."""

    def __getattr__(self, _name: str) -> Any:
        raise PlatformUnavailable("the journal does not answer")


def test_a_journal_that_is_away_does_not_silence_an_alert(bench: Bench) -> None:
    bench.__dict__["journal"] = Away()
    tell(bench)
    assert len(sent(bench)) == 1


def test_the_event_names_the_endpoint_and_is_the_same_when_sent_again(bench: Bench) -> None:
    tell(bench)
    (one,) = sent(bench)
    body = event_body(one)
    assert (body["event"], body["id"]) == (EVENT, one.id)
    assert body["resource"]["prefect.resource.id"] == "interlock.endpoint.flights"
    assert body["payload"]["next_step"] == "look at the report"
    assert event_body(one) == body
