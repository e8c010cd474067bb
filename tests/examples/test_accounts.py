"""The demo's books: who failed a client, and when a version was given its last request."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from examples.flights.accounts import SERVES, Account, Followed, read_requests, report, settle
from examples.flights.telling import (
    Teller,
    evidence_words,
    final_lines,
    final_table,
    outcome_line,
    stage_words,
)


def release(role: str, version: str, state: str, stage: str, start: float, end: float, **more) -> Followed:
    summary = {
        "state": state,
        "decided_stage": stage,
        "reason": f"because of {role}",
        "started_at": start,
        "ended_at": end,
        "decided_at": end - 1.0,
        "flow_run_url": "http://p/1",
        "mlflow_url": "http://m/1",
    }
    return Followed(role, version, summary, more.get("last_given_at"))


def request(version: str, status: int, time: float) -> dict:
    return {"version": version, "status": status, "time": time}


STORY = [
    release("baseline", "1", "PROMOTED", "evaluate", 0, 10),
    release("congested", "2", "PROMOTED", "promote", 20, 40),
    release("timetable", "3", "REJECTED", "shadow", 50, 60),
    release("neighbours", "4", "REJECTED", "canary", 70, 90, last_given_at=89.012),
    release("hasty", "5", "REJECTED", "evaluate", 100, 110),
]


def test_a_candidates_own_errors_are_its_own_and_everything_else_is_ours() -> None:
    requests = [
        *[request("4", 500, 75.0)] * 7,
        *[request("4", 504, 76.0)] * 2,
        *[request("4", 200, 77.0)] * 91,
        request("2", 500, 78.0),  # the champion failed while v4 was being released
        request("4", 503, 79.0),  # the gateway had no place for it
        request("", 0, 80.0),  # no answer at all
        request("2", 200, 81.0),
    ]
    accounts, outside = settle(STORY, requests)
    neighbours = accounts[3]
    assert outside == 0
    assert (neighbours.answered, neighbours.own_failures, neighbours.machinery_failures) == (101, 9, 3)
    assert accounts[1].answered == 2
    assert not neighbours.as_expected
    assert not report(accounts, outside)["as_expected"]
    assert report(accounts, outside)["machinery_failures"] == 3


def test_a_failure_between_releases_is_not_forgotten() -> None:
    accounts, outside = settle(STORY, [request("2", 500, 65.0), request("4", 500, 95.0)])
    assert outside == 2
    assert all(account.as_expected for account in accounts)
    assert not report(accounts, outside)["as_expected"]


def test_the_whole_story_as_it_must_end() -> None:
    accounts, outside = settle(STORY, [request("2", 200, 30.0), request("4", 500, 85.0)])
    assert [account.as_expected for account in accounts] == [True] * 5
    assert accounts[3].last_request_ms == 12.0
    assert [account.last_request_ms for account in accounts[:3]] == [None] * 3
    assert report(accounts, outside, seconds=1)["as_expected"]


@pytest.mark.parametrize(
    ("role", "state", "stage"),
    [
        ("congested", "REJECTED", "evaluate"),
        ("timetable", "REJECTED", "evaluate"),
        ("timetable", "PROMOTED", "promote"),
        ("neighbours", "REJECTED", "shadow"),
        ("hasty", "INTERRUPTED", "evaluate"),
        ("baseline", "HELD", "evaluate"),
        ("congested", SERVES, ""),
    ],
)
def test_any_other_end_is_not_expected(role: str, state: str, stage: str) -> None:
    accounts, _ = settle([release(role, "9", state, stage, 0, 1)], [])
    assert not accounts[0].as_expected


def test_on_top_of_an_earlier_run_the_first_role_serves_already() -> None:
    followed = Followed("baseline", "2", {"state": SERVES, "reason": "earlier", "decided_stage": ""})
    accounts, _ = settle([followed], [request("2", 200, 5.0)])
    assert accounts[0].as_expected
    assert accounts[0].answered == 1
    assert accounts[0].title == "v2 champion"


def test_no_versions_are_not_a_success() -> None:
    assert not report([], 0)["as_expected"]


def test_a_last_request_before_the_decision_took_no_time() -> None:
    early = release("neighbours", "4", "REJECTED", "canary", 0, 10, last_given_at=8.5)
    assert settle([early], [])[0][0].last_request_ms == 0


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    record = tmp_path / "requests.jsonl"
    record.write_text(json.dumps(request("1", 200, 1.0)) + "\n" + '{"version": "1", "sta')
    assert read_requests(record) == [request("1", 200, 1.0)]
    assert read_requests(tmp_path / "none.jsonl") == []


def test_words_for_every_stage() -> None:
    canary = {
        "stage": "canary",
        "progress": {
            "step": 4,
            "steps": 4,
            "share_percent": 95.0,
            "requests/candidate": 120,
            "units/candidate": 60,
            "evidence_log10/rollback": -0.5,
            "evidence_log10/promote": 7.2,
            "advance": "bakes for 3 s more",
            "eta_units": 12.4,
        },
    }
    assert stage_words(canary) == "canary at 95%, step 4 of 4 (soak)"
    said = evidence_words(canary)
    assert "candidate answered 120 (60 users)" in said
    assert "E = 0.32" in said
    assert "E = 10^7" in said
    assert "about 12 users to go" in said
    assert (
        stage_words({"stage": "shadow", "progress": {"min_pairs": 400, "pairs": 37}})
        == "shadow, 37 of 400 pairs"
    )
    assert stage_words({}) == "waiting"


def test_without_a_terminal_the_story_is_plain_dated_lines() -> None:
    out = io.StringIO()
    teller = Teller(Console(file=out, width=80, highlight=False))
    traffic = {"sent": 10, "failed": 0, "per_second": 150.0, "p50_ms": 4.2, "p99_ms": 20.0}
    teller.begin("4", "neighbours")
    for share in (5.0, 5.0, 25.0):
        progress = {"step": 1, "steps": 4, "share_percent": share, "advance": "[bakes]"}
        teller.show({"state": "RUNNING", "stage": "canary", "progress": progress}, traffic)
    teller.end()
    accounts, _ = settle([STORY[3]], [])
    teller.say(outcome_line(accounts[0]))
    lines = [line for line in out.getvalue().splitlines() if line]
    assert "\x1b" not in out.getvalue()
    assert sum("canary at 5%" in line for line in lines) == 1  # told once, not at every poll
    assert any("canary at 25%" in line and "[bakes]" in line and "0 failed" in line for line in lines)
    assert lines[-1].endswith("v4 rejected at canary after 20 s: because of neighbours")


def test_the_end_names_a_surprise_and_fits_a_narrow_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    bad = Account(
        "123", "timetable", "PROMOTED", "promote", "E >= 20 [on errors]", 1_050_000, 7, None, 3, 10.0
    )
    console.print(final_table([bad]))
    assert "…" not in out.getvalue()
    assert "v123 timetable" in out.getvalue()
    assert "1,050,000" in out.getvalue()
    lines = final_lines([bad])
    assert lines[0] == "v123 timetable: E >= 20 [on errors]"
    assert "expected rejected at shadow; 3 client requests failed" in lines[1]
