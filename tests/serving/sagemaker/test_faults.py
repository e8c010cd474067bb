"""A call that fails at any point of any verb: the verb raises or succeeds, and once repeated all is right."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.endpoint import EndpointState, Route, Slot
from serving.errors import (
    Busy,
    ChangeUndone,
    CredentialsRejected,
    NoCapacity,
    NotApplied,
    NotHealthy,
    PlatformUnavailable,
    QuotaExceeded,
    Refused,
    ServingError,
    SetupError,
    Throttled,
    TransientError,
)
from serving.sagemaker import clients
from serving.sagemaker.endpoint import SageMakerEndpoint
from tests.doubles.aws.cloud import Cloud
from tests.doubles.aws.wire import Fault
from tests.serving.contract.platforms import SageMakerPlatform
from tests.serving.contract.routes import first, share, uri

pytestmark = pytest.mark.slow
SECTION = {"autoscale": {"max_instances": 3, "value": 4}, "alarm_errors_per_minute": 50}
UNTIL = time.time() // 1 + 3600
BROKEN = Fault("InternalFailure", "sorry", 500)


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    made = Cloud()
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(clients, "_ATTEMPTS", 1)
    yield made
    made.close()


@pytest.fixture
def endpoint(cloud: Cloud, tmp_path: Path) -> SageMakerEndpoint:
    return SageMakerPlatform(cloud, tmp_path, **SECTION).endpoint()


def serve(endpoint: SageMakerEndpoint) -> None:
    endpoint.deploy(Slot.BLUE, "1", uri=uri("1"))
    endpoint.apply(first(endpoint))


def candidate(endpoint: SageMakerEndpoint) -> Route:
    endpoint.deploy(Slot.GREEN, "2", uri=uri("2"))
    route = dataclasses.replace(first(endpoint, 2), other_version="2")
    endpoint.apply(route)
    return route


def _given_nothing(endpoint: SageMakerEndpoint) -> Callable[[], None]:
    return lambda: endpoint.deploy(Slot.BLUE, "1", uri=uri("1"))


def _given_a_champion(endpoint: SageMakerEndpoint) -> Callable[[], None]:
    serve(endpoint)
    return lambda: endpoint.deploy(Slot.GREEN, "2", uri=uri("2"))


def _given_a_candidate(endpoint: SageMakerEndpoint) -> Callable[[], None]:
    serve(endpoint)
    asked = dataclasses.replace(candidate(endpoint), share_bp=2500, until=UNTIL)
    return lambda: endpoint.apply(asked)


def _given_a_share(endpoint: SageMakerEndpoint) -> Callable[[], None]:
    serve(endpoint)
    route = candidate(endpoint)
    endpoint.apply(share(route, 9500))
    promoted = dataclasses.replace(
        route, generation=3, default=Slot.GREEN, default_version="2", other_version="1"
    )
    return lambda: endpoint.apply(promoted)


def _given_one_to_retire(endpoint: SageMakerEndpoint) -> Callable[[], None]:
    serve(endpoint)
    candidate(endpoint)
    return lambda: endpoint.retire(Slot.GREEN)


@pytest.mark.parametrize(
    "given", [_given_nothing, _given_a_champion, _given_a_candidate, _given_a_share, _given_one_to_retire]
)
def test_every_verb_fails_at_every_call_and_is_right_once_repeated(
    cloud: Cloud, tmp_path: Path, given: Callable[[SageMakerEndpoint], Callable[[], None]]
) -> None:
    platform = SageMakerPlatform(cloud, tmp_path, **SECTION)

    def run(fail_at: int | None) -> tuple[int, EndpointState, set[str]]:
        endpoint = platform.endpoint()
        verb = given(endpoint)
        begun = len(cloud.calls)
        if fail_at is not None:
            cloud.faults = [lambda _: BROKEN if len(cloud.calls) - begun == fail_at + 1 else None]
            with contextlib.suppress(ServingError):
                verb()
            cloud.faults = []
        verb()
        state = endpoint.describe()
        registered = {
            name.rpartition("/")[2] for name in cloud.scaling.targets if f"/{endpoint.name}/" in name
        }
        return len(cloud.calls) - begun, _nameless(state), registered

    calls, right, scaled = run(None)
    assert calls >= 6
    for point in range(calls):
        _, found, registered = run(point)
        assert found == right, f"after a failure of call {point + 1}"
        assert registered == scaled, f"after a failure of call {point + 1}"


def _nameless(state: EndpointState) -> EndpointState:
    route = state.route and dataclasses.replace(state.route, endpoint="")
    replicas = {
        slot: tuple(dataclasses.replace(one, address="") for one in held)
        for slot, held in state.replicas.items()
    }
    return dataclasses.replace(state, name="", route=route, replicas=replicas)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("ThrottlingException", "Rate exceeded"), Throttled),
        (Fault("ExpiredTokenException", "expired", 403), CredentialsRejected),
        (Fault("AccessDeniedException", "is not authorized to perform"), SetupError),
        (Fault("ServiceUnavailable", "later", 503), PlatformUnavailable),
        (Fault("ValidationException", "Cannot update in-progress endpoint"), Busy),
        (Fault("ResourceLimitExceeded", "The account-level service limit"), QuotaExceeded),
    ],
)
def test_what_the_service_says_is_an_error_of_ours_with_a_next_step(
    cloud: Cloud, endpoint: SageMakerEndpoint, fault: Fault, expected: type[ServingError]
) -> None:
    serve(endpoint)
    cloud.fail("UpdateEndpoint", fault)
    with pytest.raises(expected, match="Next: "):
        endpoint.deploy(Slot.GREEN, "2", uri=uri("2"))
    assert issubclass(expected, TransientError) is (
        expected in (Throttled, CredentialsRejected, PlatformUnavailable, Busy)
    )
    assert endpoint.describe().versions == {Slot.BLUE: "1", Slot.GREEN: ""}


def test_missing_capacity_is_said_and_further_types_are_taken(cloud: Cloud, tmp_path: Path) -> None:
    cloud.no_capacity.add("ml.m5.large")
    one = SageMakerPlatform(cloud, tmp_path).endpoint()
    with pytest.raises(NoCapacity, match=r"InsufficientInstanceCapacity.*sagemaker\.instance_types"):
        one.deploy(Slot.BLUE, "1", uri=uri("1"))
    assert one.describe().versions[Slot.BLUE] == ""
    two = SageMakerPlatform(cloud, tmp_path, instance_types=["ml.m5.large", "ml.c5.xlarge"]).endpoint()
    two.deploy(Slot.BLUE, "1", uri=uri("1"))
    found = two.describe()
    assert found.versions[Slot.BLUE] == "1"
    assert [replica.machine for replica in found.replicas[Slot.BLUE]] == ["ml.c5.xlarge"]


def test_gpu_instances_are_types_that_the_service_knows(cloud: Cloud, tmp_path: Path) -> None:
    """The double refuses what botocore's model does not list: ml.g9.xlarge is invented."""
    kinds = ["ml.g6.12xlarge", "ml.p5.48xlarge"]
    endpoint = SageMakerPlatform(cloud, tmp_path, instance_types=kinds, instances=2).endpoint()
    endpoint.deploy(Slot.BLUE, "1", uri=uri("1"))
    assert [one.machine for one in endpoint.describe().replicas[Slot.BLUE]] == ["ml.g6.12xlarge"] * 2
    invented = SageMakerPlatform(cloud, tmp_path, instance_types=["ml.g9.xlarge"]).endpoint()
    with pytest.raises(Refused, match=r"ml\.g9\.xlarge.*Next: "):
        invented.deploy(Slot.BLUE, "1", uri=uri("1"))


def test_an_update_taken_back_by_an_alarm_is_no_success(cloud: Cloud, endpoint: SageMakerEndpoint) -> None:
    serve(endpoint)
    cloud.silent_rollback = True
    with pytest.raises(ChangeUndone, match="took it back: One or more configured alarms"):
        endpoint.deploy(Slot.GREEN, "2", uri=uri("2"))
    deployment = cloud.sagemaker.endpoints[endpoint.name].deployment
    assert deployment is not None
    assert deployment["AutoRollbackConfiguration"]["Alarms"] == [
        {"AlarmName": f"interlock-{endpoint.name}-blue-v1-errors"}
    ]


def test_weights_that_are_not_followed_are_read_back(cloud: Cloud, endpoint: SageMakerEndpoint) -> None:
    serve(endpoint)
    route = candidate(endpoint)
    cloud.weights_fail = "something went wrong"
    with pytest.raises(NotApplied, match="something went wrong"):
        endpoint.apply(share(route, 2500))
    found = endpoint.describe().route
    assert found is not None
    assert found.share_bp == 0


def test_a_few_throttles_are_absorbed(
    cloud: Cloud, endpoint: SageMakerEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "_ATTEMPTS", 3)
    cloud.fail("CreateModel", Fault("ThrottlingException", "Rate exceeded"), times=2)
    serve(endpoint)


def test_a_container_that_does_not_start_leaves_the_champion_alone(
    cloud: Cloud, endpoint: SageMakerEndpoint
) -> None:
    serve(endpoint)
    with pytest.raises(NotHealthy, match=r"ping health check.*/aws/sagemaker/Endpoints"):
        endpoint.deploy(Slot.GREEN, "broken", uri=uri("broken"))
    assert cloud.invoke(endpoint.name, b"{}")[0] == "blue-v1"


def test_the_candidates_weight_is_zero_from_the_first_moment(
    cloud: Cloud, endpoint: SageMakerEndpoint
) -> None:
    serve(endpoint)
    candidate(endpoint)
    specs = [
        variant
        for one in cloud.sagemaker.configurations.values()
        for variant in one["ProductionVariants"]
        if variant["VariantName"] == "green-v2"
    ]
    assert [one["InitialVariantWeight"] for one in specs] == [0.0]
    assert {cloud.invoke(endpoint.name, b"{}")[0] for _ in range(50)} == {"blue-v1"}


def test_artifacts_are_uploaded_once_by_their_content(cloud: Cloud, endpoint: SageMakerEndpoint) -> None:
    serve(endpoint)
    once = list(cloud.s3.puts)
    assert [key.rpartition("/")[2] for key in once[:1]] == ["MLmodel"]
    candidate(endpoint)
    assert cloud.s3.puts == once, "the same files have the same digest"


def test_periods_count_what_was_sent(cloud: Cloud, tmp_path: Path) -> None:
    now = [time.time() // 60 * 60 + 30]
    cloud.clock = lambda: now[0]
    endpoint = SageMakerPlatform(cloud, tmp_path).endpoint()
    endpoint._clock = lambda: now[0]
    endpoint._sleep = lambda seconds: now.__setitem__(0, now[0] + seconds)
    serve(endpoint)
    start = now[0] = now[0] // 60 * 60 + 60
    for status in (200, 200, 500, 400, 200):
        cloud.invoke(
            endpoint.name, f'{{"status": {status}, "sleep_s": {0.001 if status == 200 else 0.02}}}'.encode()
        )
    now[0] = start + 61
    (period,) = endpoint.periods(start, start + 60, edges_ms=(5.0, 50.0))
    assert (period.version, period.requests, period.failed) == ("1", 5, 2)
    assert period.counts == (3, 2, 0)
