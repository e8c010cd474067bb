"""`release --wait`: follows a run by the journal and Prefect, and exits by its outcome."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from configs.settings import Settings
from tasks import following, rest
from tasks.failures import ExitStatus
from tasks.following import follow, outcome_status
from tests.flows.cli.conftest import Interlock

URL = "http://prefect/runs/flow-run/abc"


def run_state(type_: str, name: str, message: str = "") -> dict[str, Any]:
    return {"state": {"type": type_, "name": name, "message": message}}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any] | int]:
    """What Prefect answers, one after the other; a number is a status without a body."""
    queue: list[dict[str, Any] | int] = []

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path.endswith("/flow_runs/abc")
        answer = queue.pop(0)
        return httpx.Response(answer) if isinstance(answer, int) else httpx.Response(200, json=answer)

    def api(settings: Settings) -> rest.Server:
        server = rest.Server("Prefect", settings.prefect_url, {})
        server._client = httpx.Client(transport=httpx.MockTransport(handle))
        return server

    monkeypatch.setattr(following, "prefect_api", api)
    return queue


def release_row(stage: str, **progress: object) -> dict[str, Any]:
    return {
        "release": "flights-3", "version": "3", "stage": stage, "state": "RUNNING", "reason": "",
        "progress": progress, "flow_run_url": URL,
    }  # fmt: skip


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The journal's releases, as the next look finds them."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(following, "release_history", lambda settings, endpoint: list(found))
    return found


def test_snapshots_until_it_is_over(
    cli_settings: Settings, answers: list[dict[str, Any] | int], rows: list[dict[str, Any]]
) -> None:
    answers += [
        run_state("SCHEDULED", "Scheduled"),
        run_state("RUNNING", "Running"),
        run_state("COMPLETED", "Promoted", "v3 serves"),
    ]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        rows[:] = [release_row("canary", share_percent=25), {**release_row("x"), "flow_run_url": "another"}]

    seen = list(follow(cli_settings, "flights", URL, sleep=sleep))
    assert [snapshot["run_state"] for snapshot in seen] == ["Scheduled", "Running", "Promoted"]
    assert [snapshot["over"] for snapshot in seen] == [False, False, True]
    assert seen[0]["release"] is None
    assert seen[1]["release"]["stage"] == "canary"
    assert len(slept) == 2


def test_a_restarting_prefect_is_waited_for(
    cli_settings: Settings, answers: list[dict[str, Any] | int], rows: list[dict[str, Any]]
) -> None:
    answers += [503, 503, run_state("FAILED", "Rejected", "worse")]
    seen = list(follow(cli_settings, "flights", URL, sleep=lambda _: None))
    assert [snapshot["run_state"] for snapshot in seen] == ["Rejected"]


@pytest.mark.parametrize(
    ("type_", "name", "status"),
    [
        ("COMPLETED", "Promoted", ExitStatus.DONE),
        ("FAILED", "Rejected", ExitStatus.REJECTED),
        ("CANCELLED", "Refused", ExitStatus.REFUSED),
        ("CANCELLED", "Held", ExitStatus.UNFINISHED),
        ("CANCELLED", "Interrupted", ExitStatus.UNFINISHED),
        ("CANCELLED", "Aborted", ExitStatus.UNFINISHED),
        ("CRASHED", "Crashed", ExitStatus.UNFINISHED),
        ("FAILED", "TimedOut", ExitStatus.UNFINISHED),
    ],
)
def test_the_outcome_is_the_exit_status(
    interlock: Interlock,
    answers: list[dict[str, Any] | int],
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    type_: str,
    name: str,
    status: ExitStatus,
) -> None:
    monkeypatch.setattr("tasks.control.start_release", lambda *_, **__: URL)
    monkeypatch.setattr(following.time, "sleep", lambda _: None)
    numbers = {
        "share_percent": 25,
        "step": 2,
        "steps": 4,
        "eta_units": 10,
        "units/candidate": 40.0,
        "evidence_log10/rollback": -0.30103,
        "evidence_log10/promote": 1.0,
    }
    rows[:] = [release_row("canary", **numbers, reason="HOLD: 40 of 50 units")]
    answers += [run_state("RUNNING", "Running"), run_state(type_, name, "because")]
    result = interlock("release", "flights", "3", "--wait")
    assert result.status == int(status)
    for words in (
        "canary: 25%, step 2 of 4, 40 candidate units",
        "HOLD: 40 of 50 units, about 10 units to go",
    ):
        assert words in result.out
    assert "evidence of harm 0.5, evidence of no harm 10" in result.out
    assert result.out.rstrip().endswith(f"{name}: because")
    assert outcome_status({"run_type": type_, "run_state": name}) is status


def test_json_is_one_document_a_line(
    interlock: Interlock,
    answers: list[dict[str, Any] | int],
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.control.start_release", lambda *_, **__: URL)
    monkeypatch.setattr(following.time, "sleep", lambda _: None)
    answers += [run_state("RUNNING", "Running"), run_state("COMPLETED", "Promoted")]
    lines: Iterator[str] = iter(interlock("release", "flights", "3", "--wait", "--json").out.splitlines())
    assert [json.loads(line)["run_state"] for line in lines] == ["Running", "Promoted"]
