"""What breaks, and what users and the evidence see of it."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.endpoint import Slot
from serving.errors import NotHealthy, PlatformUnavailable, SetupError
from serving.gateway.places import access_log_path
from serving.gateway.runtime import Runtime
from tests.serving.gateway.lab import Lab, eventually
from tests.serving.gateway.load import Load

pytestmark = pytest.mark.slow


def replica_pids(lab: Lab, endpoint: str, slot: str) -> list[int]:
    mark = f"replica-{endpoint}-{slot}-"
    return [one.pid for name, one in lab.supervisor.processes().items() if name.startswith(mark) and one.pid]


def observed(lab: Lab, endpoint: str, request_id: str):
    lab.log_of(request_id)
    frame = lab.endpoint(endpoint)._log.read("0:0").frame.set_index("request_id")
    return frame.loc[request_id]


def test_a_killed_replica_loses_no_request(lab: Lab) -> None:
    """Its requests are repeated on the other one, and each of them counts as a failure of the version."""
    endpoint = lab.serve("flights", replicas={"count": 2, "concurrency": 64, "start_timeout_s": 20})
    cursor = endpoint.observations(None).cursor
    with Load(lab, clients=8, command={"sleep_s": 0.01}).running() as load:
        for _ in range(2):
            pid = replica_pids(lab, "flights", "blue")[0]
            os.kill(pid, signal.SIGKILL)
            eventually(lambda dead=pid: dead not in replica_pids(lab, "flights", "blue"))
            eventually(lambda: len(replica_pids(lab, "flights", "blue")) == 2)
            eventually(lambda: all(one.healthy for one in endpoint.describe().replicas[Slot.BLUE]))
            time.sleep(0.3)
    assert load.failed() == []
    asked = {sample.request_id for sample in load.samples}
    eventually(lambda: set(endpoint.observations(cursor).frame["request_id"]) == asked)
    frame = endpoint.observations(cursor).frame
    assert (frame["status"] == 200).all()
    assert 1 <= frame["failed"].sum() <= 40, "a hidden retry is still a failure"


@pytest.mark.parametrize("clients", [2, 12], ids=["few", "many"])
def test_a_replica_that_dies_with_requests_it_never_read_loses_none(lab: Lab, clients: int) -> None:
    """So it is on a busy machine: the kernel has the request, the process has not, and it ends in a reset."""
    lab.serve("unread", replicas={"count": 2, "concurrency": 64, "start_timeout_s": 20})
    path = "/unread/invocations"
    with Load(lab, clients=clients, path=path, command={"sleep_s": 0.002}).running() as load:
        for _ in range(4):
            time.sleep(0.3)
            pid = replica_pids(lab, "unread", "blue")[0]
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.15)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda dead=pid: dead not in replica_pids(lab, "unread", "blue"))
            eventually(lambda: len(replica_pids(lab, "unread", "blue")) == 2)
            eventually(
                lambda: all(one.healthy for one in lab.endpoint("unread").describe().replicas[Slot.BLUE])
            )
    assert load.failed() == []


def test_a_hung_replica_costs_its_own_requests_only(lab: Lab) -> None:
    """Stopped, not dead: what it holds ends with 504 in time, what comes later goes elsewhere."""
    endpoint = lab.serve("hung", replicas={"count": 2, "request_timeout_s": 4, "start_timeout_s": 20})
    pid = replica_pids(lab, "hung", "blue")[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(lab.ask, path="/hung/invocations") for _ in range(4)]
            assert {job.result().status for job in jobs} <= {200, 504}
        eventually(lambda: sum(one.healthy for one in endpoint.describe().replicas[Slot.BLUE]) == 1)
        assert {lab.ask(path="/hung/invocations").status for _ in range(10)} == {200}
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: all(one.healthy for one in endpoint.describe().replicas[Slot.BLUE]))


def test_a_request_that_may_have_effects_is_not_repeated(lab: Lab) -> None:
    lab.serve("once", replicas={"count": 2, "retry_unanswered": False, "start_timeout_s": 20})
    before = set(replica_pids(lab, "once", "blue"))
    answer = lab.ask({"die": True}, path="/once/invocations")
    assert (answer.status, answer.json["error"]) == (502, "bad_gateway")
    eventually(lambda: len(before - set(replica_pids(lab, "once", "blue"))) == 1)
    row = observed(lab, "once", answer.headers["x-request-id"])
    assert row["failed"]
    assert row["status"] == 502


def test_a_candidate_without_replicas_is_hidden_from_users_but_not_from_the_evidence(lab: Lab) -> None:
    endpoint = lab.serve("backed", candidate="2")
    endpoint.apply(lab.route("backed", candidate="2", share_bp=10_000))
    path = "/backed/invocations"
    assert lab.ask(path=path).json["version"] == "2"
    (name,) = [one.name for one in endpoint.describe().replicas[Slot.GREEN]]
    lab.supervisor._call("supervisor.stopProcess", name, True)
    eventually(lambda: not endpoint.describe().replicas[Slot.GREEN][0].healthy)
    answer = lab.ask(path=path)
    assert answer.status == 200
    assert answer.json["version"] == "1", "the champion answered"
    assert answer.json["headers"]["x-interlock-version"] == "1", "and records it as its own"
    assert (answer.version, answer.headers["x-interlock-slot"]) == ("2", "blue")
    row = observed(lab, "backed", answer.headers["x-request-id"])
    assert (row["version"], row["slot"], bool(row["failed"]), row["status"]) == ("2", "green", True, 200)


def test_a_full_queue_answers_503_and_says_when_to_come_back(lab: Lab) -> None:
    lab.serve("narrow", replicas={"concurrency": 2, "queue": 3, "start_timeout_s": 20})
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(lab.ask, {"sleep_s": 2.5}, path="/narrow/invocations") for _ in range(12)]
        answers = [job.result() for job in jobs]
    refused = [answer for answer in answers if answer.status == 503]
    served = [answer for answer in answers if answer.status == 200]
    assert len(served) == 5, "two run, three wait"
    assert len(refused) == 7
    for answer in refused:
        assert answer.json == {"error": "overloaded", "status": 503}
        assert answer.headers["retry-after"] == "1"
    queued = [observed(lab, "narrow", answer.headers["x-request-id"]) for answer in served]
    assert sum(row["total_ms"] > 4500 for row in queued) >= 3, "three waited for their turn"
    assert all(2400 < row["service_ms"] < 4500 for row in queued), "service time leaves the queue out"


def test_without_a_queue_only_free_places_admit(lab: Lab) -> None:
    lab.serve("tight", replicas={"concurrency": 2, "queue": 0, "start_timeout_s": 20})
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(lab.ask, {"sleep_s": 2.5}, path="/tight/invocations") for _ in range(6)]
        statuses = sorted(job.result().status for job in jobs)
    assert statuses == [200, 200, 503, 503, 503, 503]


def test_a_slow_replica_is_cut_off_and_counts_as_failed(lab: Lab) -> None:
    lab.serve("slow", replicas={"request_timeout_s": 0.5, "start_timeout_s": 20})
    answer = lab.ask({"sleep_s": 10}, path="/slow/invocations")
    assert (answer.status, answer.json) == (504, {"error": "timeout", "status": 504})
    row = observed(lab, "slow", answer.headers["x-request-id"])
    assert bool(row["failed"])
    assert 450 < row["service_ms"] < 8000


def test_a_client_that_goes_away_got_no_answer(lab: Lab) -> None:
    endpoint = lab.serve("left")
    cursor = endpoint.observations(None).cursor
    connection = http.client.HTTPConnection("127.0.0.1", lab.settings.gateway_port, timeout=5)
    body = json.dumps({"sleep_s": 12}).encode()
    connection.request("POST", "/left/invocations", body, {"x-api-key": lab.key})
    eventually(lambda: sum(endpoint.observations(cursor).in_flight.values()) == 1)
    time.sleep(0.2)
    assert endpoint.observations(cursor, settle_s=5).in_flight == {Slot.BLUE: 0, Slot.GREEN: 0}
    connection.close()
    eventually(lambda: len(endpoint.observations(cursor).frame) == 1)
    (row,) = endpoint.observations(cursor).frame.to_dict("records")
    assert (row["status"], row["failed"]) == (0, True)
    assert sum(endpoint.observations(cursor).in_flight.values()) == 0


def test_requests_in_flight_are_counted_by_age_and_slot(lab: Lab) -> None:
    endpoint = lab.serve("aged", candidate="2")
    endpoint.apply(lab.route("aged", candidate="2", share_bp=10_000))
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(lab.ask, {"sleep_s": 6}, path="/aged/invocations") for _ in range(3)]
        eventually(lambda: endpoint.observations(None).in_flight[Slot.GREEN] == 3)
        eventually(lambda: endpoint.observations(None, settle_s=2).in_flight[Slot.GREEN] == 3)
        assert endpoint.observations(None).in_flight[Slot.BLUE] == 0
        assert [job.result().status for job in jobs] == [200, 200, 200]


def test_an_endpoint_that_serves_nothing_yet_says_so(lab: Lab) -> None:
    lab.endpoint("unborn").deploy(Slot.BLUE, "1", uri="models:/m/1")
    answer = lab.ask(path="/unborn/invocations")
    assert (answer.status, answer.json["error"]) == (503, "not_serving")
    assert answer.headers["retry-after"] == "5"


def test_a_version_that_does_not_start_leaves_nothing_behind(lab: Lab) -> None:
    endpoint = lab.serve("fresh")
    with pytest.raises(NotHealthy, match="its model is missing"):
        endpoint.deploy(Slot.GREEN, "broken", uri="models:/m/broken")
    assert endpoint.describe().versions == {Slot.BLUE: "1", Slot.GREEN: ""}
    assert replica_pids(lab, "fresh", "green") == []
    assert lab.ask(path="/fresh/invocations").status == 200


def test_a_refused_configuration_leaves_the_old_one_in_force(lab: Lab) -> None:
    lab.serve("flights")
    wrong = dataclasses.replace(lab).settings.model_copy(update={"gateway_metrics_port": 99_999_999})
    before = (lab.settings.gateway_dir / "haproxy.cfg").read_text()
    from serving.gateway.render import refresh_gateway

    with pytest.raises(SetupError, match=r"refuses the configuration.*ALERT.*99999999"):
        refresh_gateway(wrong)
    assert (lab.settings.gateway_dir / "haproxy.cfg").read_text() == before
    assert lab.ask().status == 200


def test_the_gateway_comes_back_after_its_worker_was_killed(lab: Lab) -> None:
    lab.serve("flights", candidate="2").apply(lab.route(candidate="2", share_bp=10_000))
    (worker,) = [one.pid for one in lab.runtime.workers() if one.is_current]
    os.kill(worker, signal.SIGKILL)

    def answers() -> bool:
        try:
            return lab.ask().status == 200
        except OSError:
            return False

    def is_replaced() -> bool:
        try:
            return worker not in {one.pid for one in lab.runtime.workers()}
        except PlatformUnavailable:
            return False

    eventually(is_replaced)
    eventually(answers)
    assert lab.ask().version == "2", "routes and leases are still there"


def test_a_gateway_that_starts_again_goes_on_behind_its_old_log(lab: Lab) -> None:
    endpoint = lab.serve("flights")
    begin = endpoint.observations(None).cursor
    assert lab.ask().status == 200
    eventually(lambda: len(endpoint.observations(begin).frame) == 1)
    before = access_log_path(lab.settings).read_bytes()
    lab.supervisor.restart("gateway")
    eventually(lab.runtime.is_up)
    assert lab.ask().status == 200
    eventually(lambda: len(endpoint.observations(begin).frame) == 2)
    assert access_log_path(lab.settings).read_bytes().startswith(before)


def test_a_gateway_that_is_down_is_a_transient_error(lab: Lab) -> None:
    with pytest.raises(PlatformUnavailable, match="does not answer"):
        Runtime(lab.settings.run_dir / "nobody.sock").workers()


def test_a_stopped_gateway_does_not_hang_its_caller(lab: Lab) -> None:
    path = lab.settings.run_dir / "deaf.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        with pytest.raises(PlatformUnavailable):
            Runtime(path, timeout_s=0.2).workers()
