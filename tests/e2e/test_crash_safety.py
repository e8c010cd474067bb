"""However a release's flow run ends without a verdict: share 0, told, resumable, never rejected."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from tests.e2e import conftest
from tests.e2e.stand import Stand, Traffic, eventually, kill

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200), pytest.mark.xdist_group("real-stack")]

WATCHED = conftest.WATCHED.replace("soak_s: 3", "soak_s: 60")
"""A ramp that is long enough to be seen by the command line, on a busy machine too."""


def crash(stand: Stand, flow_run_id: str) -> None:
    """Its process dies; the worker reports that."""
    kill(stand.flow_process(flow_run_id))


def cancel(stand: Stand, flow_run_id: str) -> None:
    """Somebody cancels it in Prefect."""
    set_state(stand, flow_run_id, "CANCELLING", "Cancelling")


def fail(stand: Stand, flow_run_id: str) -> None:
    """Prefect has it as failed, while its process still works."""
    set_state(stand, flow_run_id, "FAILED", "Failed")


def time_out(stand: Stand, flow_run_id: str) -> None:
    """The same by a time-out."""
    set_state(stand, flow_run_id, "FAILED", "TimedOut")


def fall_silent(stand: Stand, flow_run_id: str) -> None:
    """Worker and flow die together: nobody reports anything, the heartbeats just end."""
    pid = stand.flow_process(flow_run_id)
    kill(int(stand.program("worker")["pid"]))
    kill(pid)


def set_state(stand: Stand, flow_run_id: str, kind: str, name: str) -> None:
    httpx.post(
        f"{stand.settings.prefect_url}/flow_runs/{flow_run_id}/set_state",
        json={"state": {"type": kind, "name": name}, "force": True},
        timeout=30,
    ).raise_for_status()


ENDINGS = {
    "Crashed": (crash, 60, "Crashed"),
    "Cancelled": (cancel, 60, "Cancelled"),
    "Failed": (fail, 60, None),
    "TimedOut": (time_out, 60, None),
    "silent": (fall_silent, 200, "Crashed"),
}


@pytest.fixture(scope="module")
def version(watched: Stand, steady: Traffic) -> str:
    del steady
    made = watched.register(offset=0.004)
    watched.alias(made)
    return made


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_release_that_ends_without_a_verdict_is_safe_and_goes_on(
    watched: Stand, steady: Traffic, version: str, ending: str
) -> None:
    end, wait_s, state = ENDINGS[ending]
    ramping = watched.await_release(version, in_canary_since(time.time()), 300)
    watched.interlock("pause", "sums")
    flow_run_id = ramping["flow_run_url"].rsplit("/", 1)[1]
    began = time.time()
    end(watched, flow_run_id)
    safe = watched.await_release(version, lambda one: one["state"] == "INTERRUPTED", wait_s)
    print(f"{ending}: INTERRUPTED after {time.time() - began:.1f} s: {safe['reason']}")
    eventually(lambda: watched.status()["live"]["route"]["share_bp"] == 0, 15)
    eventually(lambda: {seen for _, seen in steady.since(time.time() - 1)} == {ramping["champion"]}, 15)
    assert watched.aliases()["candidate"] == version
    assert any(line["release_id"] == safe["release"] for line in watched.audit("made safe"))
    if state is not None:
        eventually(lambda: watched.flow_state(ramping) == state, 120)
    assert {status for status, _ in steady.since(began)} == {200}
    watched.interlock("resume", "sums")


def in_canary_since(moment: float) -> Callable[[dict], bool]:
    def ramping(release: dict) -> bool:
        progress = release["progress"]
        is_fresh = progress.get("look", 0) >= 1 and progress.get("time", 0) > moment
        return release["state"] == "RUNNING" and release["stage"] == "canary" and is_fresh

    return ramping


def test_what_was_interrupted_five_times_is_promoted_in_the_end(watched: Stand, version: str) -> None:
    ended = watched.await_release(version, lambda one: bool(one["ended_at"]), 300)
    assert ended["state"] == "PROMOTED", ended
