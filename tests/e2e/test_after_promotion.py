"""After the promotion, on real servers under traffic: what goes back by itself, and what must not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.stand import Stand, Traffic, eventually, promote

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200), pytest.mark.xdist_group("real-stack")]


def test_harm_that_begins_after_the_promotion_is_taken_back_by_the_schedule(
    watched: Stand, steady: Traffic, tmp_path: Path
) -> None:
    before = watched.status()["champion"]
    version = watched.register(offset=0.001, breaks_on=tmp_path / "later")
    promote(watched, version)
    (tmp_path / "later").touch()
    began = time.time()
    eventually(lambda: steady.answers[-1][2] == before, 150, 0.05)
    took_s = time.time() - began
    time.sleep(3)
    print(f"rolled back {took_s:.1f} s after the onset of 20% errors at 100 requests/s")
    (release,) = [one for one in watched.history() if one["version"] == version]
    assert release["state"] == "ROLLED_BACK"
    assert "replayed requests the champion is bad on" in release["reason"]
    assert "the previous version on 0.0%" in release["reason"]
    assert watched.aliases() == {"champion": before}
    answers = steady.since(began - 1)
    assert set(answers) <= {(200, version), (500, version), (200, before)}, "only the model itself failed"
    assert set(steady.since(release["decided_at"] + 0.5)) == {(200, before)}
    (decided, *_) = watched.audit("decided")
    assert (decided["who"], decided["details"]["loser"]) == ("watch", version)


def test_harm_on_both_versions_moves_nothing_and_says_why(
    watched: Stand, steady: Traffic, upstream: Path
) -> None:
    version = watched.register(offset=0.002, breaks_on=upstream)
    promote(watched, version)
    began = time.time()
    upstream.touch()
    try:
        eventually(lambda: any(about_both(line, version) for line in watched.audit("alert")), 150, 2)
    finally:
        upstream.unlink()
    assert watched.status()["champion"] == version
    assert {seen for _, seen in steady.since(began)} == {version}
    time.sleep(1)
    assert set(steady.since(time.time() - 0.8)) == {(200, version)}


def about_both(line: dict, version: str) -> bool:
    message = line["details"]["message"]
    severity = line["details"]["severity"]
    return severity == "critical" and "both versions suffer" in message and f"version {version}" in message


def test_a_rollback_to_a_broken_version_is_refused_and_traffic_stays(watched: Stand, steady: Traffic) -> None:
    status = watched.status()
    serving, previous = status["champion"], status["other_version"]
    assert previous
    other = "green" if status["champion_slot"] == "blue" else "blue"
    pid = watched.program(f"replica-sums-{other}-{port_of(status, other)}")["pid"]
    began = time.time()
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: not watched.status()["live"]["replicas"][other][0]["healthy"], 20)
        code, said = watched.refused("rollback", "sums", "--reason", "complaints")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert code == 5
    assert f"the previous version {previous} is not healthy" in said
    assert f"traffic stays on version {serving}" in said
    assert any("not healthy" in line["details"]["message"] for line in watched.audit("alert"))
    eventually(lambda: watched.status()["live"]["replicas"][other][0]["healthy"], 20)
    assert set(steady.since(began)) == {(200, serving)}

    screen = watched.interlock("rollback", "sums", "--reason", "complaints")
    assert f"version {serving} is off, version {previous} serves" in screen
    assert "answered 5 of 5 recent requests" in screen
    print(screen)
    again = watched.interlock("rollback", "sums", "--reason", "complaints")
    assert "nothing was changed" in again
    time.sleep(1)
    assert set(steady.since(time.time() - 0.8)) == {(200, previous)}
    assert {status for status, _ in steady.since(began)} == {200}


def port_of(status: dict, slot: str) -> str:
    return status["live"]["replicas"][slot][0]["address"].rsplit(":", 1)[1]


def test_a_look_by_hand_goes_on_from_the_schedules(watched: Stand, steady: Traffic) -> None:
    assert steady.answers
    said = watched.interlock("watch", "sums", "--once")
    print(said)
    assert "no evidence of harm" in said or "somebody else was first" in said
