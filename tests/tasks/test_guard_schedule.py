"""The guard runs by the clock where a share would stay for ever without it, and nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from configs.policy import Policy
from configs.settings import Settings
from serving.errors import Refused
from serving.fake import FakeEndpoint, FakeMetered
from serving.journal import Journal
from tasks.bench import Bench
from tasks.guard_schedule import is_guard_needed, schedule_guard, stand_guard
from tests.configs.policies import valid_content
from tests.serving.contract.platforms import sagemaker_policy
from tests.tasks.doubles import HandClock, MemoryMessenger


class Prefect(ThreadingHTTPServer):
    """Has the deployment with one schedule, or nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        self.is_deployed = True
        self.is_active = False
        self.changes: list[bool] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/api/deployments/name/guard/guard"
                found = {"id": "d", "schedules": [{"id": "s", "active": outer.is_active}]}
                self._answer(200 if outer.is_deployed else 404, found)

            def do_PATCH(self) -> None:
                assert self.path == "/api/deployments/d/schedules/s"
                outer.is_active = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["active"]
                outer.changes.append(outer.is_active)
                self._answer(204, None)

            def _answer(self, status: int, body: Any) -> None:
                text = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Silent."""

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def prefect() -> Iterator[Prefect]:
    made = Prefect()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def settings(prefect: Prefect, tmp_path: Any) -> Settings:
    url = f"http://127.0.0.1:{prefect.server_port}/api"
    return Settings(prefect_api_url=url, journal_url=f"sqlite:///{tmp_path}/journal.db")


def test_only_a_platform_without_leases_needs_it() -> None:
    local = Policy.model_validate(valid_content())
    assert not is_guard_needed([local])
    assert is_guard_needed([local, sagemaker_policy()])


def test_the_schedule_is_switched_only_where_it_differs(prefect: Prefect, settings: Settings) -> None:
    for wanted in (False, True, True, False):
        schedule_guard(settings, is_needed=wanted)
    assert prefect.changes == [True, False]


def test_a_stack_without_the_deployment_is_told_what_to_do(prefect: Prefect, settings: Settings) -> None:
    prefect.is_deployed = False
    with pytest.raises(Refused, match="Next: interlock up"):
        schedule_guard(settings, is_needed=True)


def _bench(settings: Settings, endpoint: Any, messenger: Any) -> Bench:
    policy = Policy.model_validate(valid_content())
    return Bench(policy, settings, endpoint=endpoint, messenger=messenger, clock=HandClock())


def test_a_release_switches_it_on_where_there_is_no_lease(prefect: Prefect, settings: Settings) -> None:
    stand_guard(_bench(settings, FakeEndpoint("flights"), MemoryMessenger()))
    assert prefect.changes == []
    stand_guard(_bench(settings, FakeMetered("flights"), MemoryMessenger()))
    assert prefect.changes == [True]


def test_a_release_without_a_guard_goes_on_and_a_person_is_told(prefect: Prefect, settings: Settings) -> None:
    prefect.is_deployed = False
    stand_guard(_bench(settings, FakeMetered("flights"), MemoryMessenger()))
    (line,) = [one for one in Journal(settings.journal).audit("flights") if one.what == "alert"]
    assert "the guard is not scheduled" in json.dumps(line.details)
