"""Vertex AI: what only this platform does. The promises of every platform are in the contract."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.policy import Policy
from serving.endpoint import Reply, Route, Slot
from serving.errors import (
    CredentialsRejected,
    Fenced,
    NoCapacity,
    NotHealthy,
    QuotaExceeded,
    Refused,
    SetupError,
    Throttled,
    TransientError,
)
from serving.vertex import google_apis
from serving.vertex.endpoint import VertexEndpoint
from serving.vertex.google_apis import SplitConflict
from tests.doubles.google import problems as google
from tests.doubles.google.vertex import VertexDouble
from tests.serving.vertex.stand import vertex_endpoint, vertex_policy
from tests.tasks.doubles import HandClock

URI = "models:/late/"
pytestmark = pytest.mark.slow  # Google's clients take seconds to import
ID = "interlock-flights"


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def service(clock: HandClock) -> Iterator[VertexDouble]:
    made = VertexDouble(clock=clock)
    yield made
    made.close()


@pytest.fixture
def endpoint(service: VertexDouble, tmp_path: Path, clock: HandClock) -> VertexEndpoint:
    return vertex_endpoint(service, tmp_path, clock=clock)


@pytest.fixture
def canary(endpoint: VertexEndpoint, clock: HandClock) -> Route:
    """Version 1 serves from blue, version 2 waits in green, generation 2."""
    endpoint.deploy(Slot.BLUE, "1", uri=URI + "1")
    endpoint.apply(Route("flights", 1, Slot.BLUE, "1", salt="flights-v2-1"))
    endpoint.deploy(Slot.GREEN, "2", uri=URI + "2")
    route = Route("flights", 2, Slot.BLUE, "1", other_version="2", salt="flights-v2-1")
    endpoint.apply(route)
    return route


def share(route: Route, percent: int, clock: HandClock) -> Route:
    return dataclasses.replace(route, share_bp=percent * 100, until=clock.now + 300)


def test_a_first_deployment_makes_a_dedicated_endpoint_without_traffic(
    endpoint: VertexEndpoint, service: VertexDouble
) -> None:
    endpoint.deploy(Slot.BLUE, "1", uri=URI + "1")
    made = service.endpoints[ID]
    assert made.dedicated_endpoint_enabled
    assert made.predict_request_response_logging_config.bigquery_destination.output_uri == (
        "bq://acme-models.interlock.requests"
    )
    assert dict(made.traffic_split) == {}
    assert [one.id[0] for one in made.deployed_models] == ["1"]
    assert endpoint.describe().route is None


def test_artifacts_are_uploaded_once(endpoint: VertexEndpoint, service: VertexDouble) -> None:
    endpoint.deploy(Slot.BLUE, "1", uri=URI + "1")
    endpoint.apply(Route("flights", 1, Slot.BLUE, "1"))
    endpoint.deploy(Slot.GREEN, "1", uri=URI + "1")
    assert service.uploads == ["interlock/1/MLmodel", "interlock/1/.interlock-complete"]
    assert len(service.models) == 1


def test_an_upload_that_died_halfway_is_done_again(endpoint: VertexEndpoint, service: VertexDouble) -> None:
    service.objects["acme-models/interlock/1/MLmodel"] = b"half"
    endpoint.deploy(Slot.BLUE, "1", uri=URI + "1")
    assert service.objects["acme-models/interlock/1/MLmodel"] == (URI + "1").encode()


def test_the_policy_reaches_the_machine(service: VertexDouble, tmp_path: Path) -> None:
    policy = vertex_policy(
        machine_type="g2-standard-12",
        accelerator_type="NVIDIA_L4",
        accelerator_count=1,
        autoscale={
            "min_replicas": 2,
            "max_replicas": 5,
            "targets": {"aiplatform.googleapis.com/prediction/online/accelerator/duty_cycle": 70},
        },
        arguments=["--max-model-len=4096"],
        environment={"HF_HOME": "/models"},
    )
    vertex_endpoint(service, tmp_path, policy=policy).deploy(Slot.BLUE, "1", uri=URI + "1")
    resources = service.endpoints[ID].deployed_models[0].dedicated_resources
    assert resources.machine_spec.accelerator_type.name == "NVIDIA_L4"
    assert (resources.min_replica_count, resources.max_replica_count) == (2, 5)
    assert [
        (one.metric_name.rsplit("/", 1)[1], one.target) for one in resources.autoscaling_metric_specs
    ] == [("duty_cycle", 70)]
    container = next(iter(service.models.values())).container_spec
    assert container.args == ["--max-model-len=4096"]
    assert {one.name: one.value for one in container.env}["HF_HOME"] == "/models"


def test_a_share_is_a_whole_percent(endpoint: VertexEndpoint, canary: Route, clock: HandClock) -> None:
    with pytest.raises(Refused, match="whole percents"):
        endpoint.apply(dataclasses.replace(canary, share_bp=550, until=clock.now + 60))


def test_split_and_labels_change_together(
    endpoint: VertexEndpoint, service: VertexDouble, canary: Route, clock: HandClock
) -> None:
    asked = share(canary, 25, clock)
    endpoint.apply(asked)
    assert sorted(service.endpoints[ID].traffic_split.values()) == [25, 75]
    assert endpoint.describe().route == asked
    assert service.calls.count("update_endpoint") == 3


def test_somebody_elses_change_is_read_and_judged_anew(
    endpoint: VertexEndpoint, service: VertexDouble, canary: Route, clock: HandClock
) -> None:
    conflict = google.Problem(409, "ABORTED", "etag mismatch")
    service.fail_next("update_endpoint", conflict, times=2)
    endpoint.apply(share(canary, 5, clock))
    assert sorted(service.endpoints[ID].traffic_split.values()) == [5, 95]
    service.fail_next("update_endpoint", conflict, times=5)
    with pytest.raises(SplitConflict, match="somebody else"):
        endpoint.apply(share(canary, 25, clock))
    assert sorted(service.endpoints[ID].traffic_split.values()) == [5, 95]


def test_of_two_writers_the_older_generation_loses(
    endpoint: VertexEndpoint, service: VertexDouble, canary: Route, clock: HandClock
) -> None:
    """A rollback lands between a stale writer's reading and its writing: the etag stops it."""
    rollback = dataclasses.replace(canary, generation=3, other_version="")
    original = endpoint._update
    raced: list[int] = []

    def slow(*arguments: object) -> None:
        if not raced:
            raced.append(1)
            threading.Thread(target=endpoint.apply, args=(rollback,)).run()
        original(*arguments)  # type: ignore[arg-type]

    endpoint._update = slow  # type: ignore[method-assign]
    with pytest.raises(Fenced):
        endpoint.apply(share(canary, 50, clock))
    assert dict(service.endpoints[ID].traffic_split) == {service.endpoints[ID].deployed_models[0].id: 100}


def test_an_answer_that_was_lost_is_asked_for_again(
    endpoint: VertexEndpoint, service: VertexDouble, clock: HandClock
) -> None:
    for verb in ("create_endpoint", "upload_model", "deploy_model"):
        service.lose_answer(verb)
    endpoint.deploy(Slot.BLUE, "1", uri=URI + "1")
    assert endpoint.describe().versions[Slot.BLUE] == "1"
    assert len(service.endpoints[ID].deployed_models) == 1
    service.lose_answer("update_endpoint")
    endpoint.apply(Route("flights", 1, Slot.BLUE, "1"))
    assert endpoint.describe().route == Route("flights", 1, Slot.BLUE, "1")


def test_a_container_that_never_starts_leaves_nothing(
    endpoint: VertexEndpoint, service: VertexDouble, canary: Route
) -> None:
    endpoint.retire(Slot.GREEN)
    service.break_start("3")
    with pytest.raises(NotHealthy, match=r"never became ready.*Cloud Logging"):
        endpoint.deploy(Slot.GREEN, "3", uri=URI + "3")
    assert endpoint.describe().versions[Slot.GREEN] == ""


@pytest.mark.parametrize(
    ("problem", "kind", "words"),
    [
        (google.no_quota(), QuotaExceeded, "quota is used up.*machine_type"),
        (google.no_capacity(), NoCapacity, "no capacity.*machine_type"),
        (google.throttled(), Throttled, "throttling us"),
        (google.expired(), CredentialsRejected, "expired.*gcloud auth"),
        (google.Problem(403, "PERMISSION_DENIED", "no"), SetupError, "docs/vertex.md"),
        (google.invalid("machine type n9"), Refused, "refused: .*n9"),
        (google.Problem(400, "FAILED_PRECONDITION", "Endpoint is being updated"), SplitConflict, "busy"),
    ],
)
def test_each_refusal_is_an_error_with_its_next_step(
    endpoint: VertexEndpoint,
    service: VertexDouble,
    canary: Route,
    problem: google.Problem,
    kind: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del canary
    monkeypatch.setattr(google_apis, "_TRIED_FOR_S", 1.0)
    assert issubclass(kind, TransientError) is (kind in (Throttled, CredentialsRejected, SplitConflict))
    before = dict(service.endpoints[ID].traffic_split)
    endpoint.retire(Slot.GREEN)
    service.fail_next("deploy_model", problem, times=20)
    with pytest.raises(kind, match=f"(?s){words}"):
        endpoint.deploy(Slot.GREEN, "3", uri=URI + "3")
    assert service.endpoints[ID].traffic_split.items() <= before.items()


def test_throttling_is_waited_out(endpoint: VertexEndpoint, service: VertexDouble, canary: Route) -> None:
    service.fail_next("get_endpoint", google.throttled(), times=2)
    assert endpoint.describe().route == canary


def test_one_version_is_asked_past_the_split(
    endpoint: VertexEndpoint, service: VertexDouble, canary: Route
) -> None:
    del canary
    service.behave("2", lambda body: Reply(500 if b"bad" in body else 200, b"two", 2.0))
    ask = {"content_type": "application/json", "timeout_s": 5.0}
    assert endpoint.invoke(Slot.GREEN, "/invocations", b"{}", **ask).body == b"two"
    assert endpoint.invoke(Slot.GREEN, "/invocations", b"bad", **ask).status == 500
    endpoint.retire(Slot.GREEN)
    with pytest.raises(Refused, match="holds no version"):
        endpoint.invoke(Slot.GREEN, "/invocations", b"{}", **ask)


def test_periods_count_requests_failures_and_latencies(
    endpoint: VertexEndpoint, service: VertexDouble, canary: Route, clock: HandClock
) -> None:
    endpoint.apply(share(canary, 50, clock))
    service.behave("1", lambda _: Reply(200, b"{}", 5.0))
    service.behave("2", lambda _: Reply(500, b"{}", 50.0))
    begun = clock.now = clock.now // 60 * 60
    for _ in range(200):
        service.send(ID, b'{"instances": [[1]]}')
    clock.now += 30
    assert endpoint.periods(begun, clock.now, edges_ms=()) == []
    clock.now += 400
    blue, green = sorted(endpoint.periods(begun, clock.now, edges_ms=()), key=lambda one: one.version)
    assert (blue.start, blue.end) == (begun, begun + 60)
    assert blue.requests + green.requests == 200
    assert (blue.failed, green.failed) == (0, green.requests)
    assert sum(blue.counts) == blue.requests
    position = blue.counts.index(blue.requests)
    assert blue.edges_ms[position - 1] <= 5.0 <= blue.edges_ms[position]
    assert len(blue.counts) == len(blue.edges_ms) + 1


def test_the_request_log_is_read_once_each_and_late(
    service: VertexDouble, tmp_path: Path, clock: HandClock
) -> None:
    policy = vertex_policy(request_log={"table": "acme-models.interlock.requests", "delay_s": 120})
    endpoint = vertex_endpoint(service, tmp_path, policy=policy, clock=clock)
    endpoint.deploy(Slot.BLUE, "1", uri=URI + "1")
    endpoint.apply(Route("flights", 1, Slot.BLUE, "1"))
    _, cursor = endpoint.exchanges(None, limit=10)
    clock.now += 1
    for number in range(5):
        service.send(ID, json.dumps({"instances": [[number]]}).encode())
    assert endpoint.exchanges(cursor, limit=10) == ([], cursor)
    clock.now += 200
    first, cursor = endpoint.exchanges(cursor, limit=3)
    rest, cursor = endpoint.exchanges(cursor, limit=10)
    assert [json.loads(one.request)["instances"][0][0] for one in (*first, *rest)] == [0, 1, 2, 3, 4]
    assert {one.version for one in first} == {"1"}
    assert json.loads(first[0].response) == {"predictions": [0]}
    assert endpoint.exchanges(cursor, limit=10)[0] == []


def test_a_foreign_deployment_is_left_alone(
    endpoint: VertexEndpoint, service: VertexDouble, canary: Route
) -> None:
    resource = service.endpoints[ID]
    foreign = type(resource.deployed_models[0])(resource.deployed_models[0])
    foreign.id = "77"
    resource.deployed_models.append(foreign)
    assert endpoint.describe().route == canary
    assert endpoint.describe().versions == {Slot.BLUE: "1", Slot.GREEN: "2"}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"region": "Frankfurt"}, "pattern"),
        ({"artifacts": "models"}, "pattern"),
        ({"autoscale": {"min_replicas": 0}}, "1"),
        ({"request_log": None}, "shadow.enabled needs vertex.request_log"),
        ({"metrics_period_s": 200}, "three times vertex.metrics_period_s"),
    ],
)
def test_what_vertex_cannot_do_is_refused(section: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vertex_policy(**section)


def test_other_rules_of_the_policy() -> None:
    content = vertex_policy().model_dump(mode="json")
    for change, words in (
        ({"vertex": None}, "needs a section"),
        ({"assign_by": "user"}, "splits requests, not users"),
        ({"canary": {"lease_s": 300, "steps": [0.5, 95]}}, "whole percents"),
        ({"capture": {"hash": ["name"]}}, "Vertex records whole requests"),
    ):
        with pytest.raises(ValueError, match=words):
            Policy.model_validate(content | change)
