"""What goes wrong on managed platforms: how a release ends, and where the traffic is then.

Each trouble is a row of docs/reliability.md, and the row is what was seen here: the flow, the
real client libraries and the doubles, with time by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows.release import release_model
from serving.sagemaker import clients
from serving.vertex import google_apis
from tasks import transitions
from tasks.bench import Bench
from tasks.guarding import guard
from tests.doubles.aws.cloud import Cloud
from tests.doubles.aws.wire import Fault
from tests.doubles.google import problems as google
from tests.flows.sagemaker_world import MINUTE_S, SageMakerWorld
from tests.flows.vertex_world import VertexWorld
from tests.flows.world import Version
from tests.tasks.doubles import Killed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_server")]
DOCUMENT = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
PLATFORMS = ("SageMaker", "Vertex AI")
THROTTLED = Fault("ThrottlingException", "Rate exceeded")
EXPIRED = Fault("ExpiredTokenException", "The security token included in the request is expired", 403)
AnyWorld = Any
"""A SageMakerWorld or a VertexWorld."""


def documented() -> dict[tuple[str, str], str]:
    """(trouble, platform) to what the document says."""
    section = DOCUMENT.partition("<!-- clouds: begin -->")[2].partition("<!-- clouds: end -->")[0]
    found: dict[tuple[str, str], str] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 3 and cells[0] not in ("trouble", "---"):
            found |= {(cells[0], name): cell for name, cell in zip(PLATFORMS, cells[1:], strict=True)}
    return found


class Story:
    """What happened, in the words of the table."""

    def __init__(self, world: AnyWorld) -> None:
        self.world = world
        self.told: list[str] = []

    def release(self, says: str = "") -> State:
        """Run the flow for version 2; `says` must be in what it ends with."""
        state: Any = release_model("flights", 2, return_state=True)
        self._tell("again" if self.told else "", state.name)
        assert re.search(says, state.message or "", re.DOTALL), state.message
        return state

    def killed(self) -> None:
        """The same, and the process dies."""
        with pytest.raises(Killed):
            release_model("flights", 2, return_state=True)
        self.world.on_second = lambda: None
        self._tell("", "killed")

    def guard(self) -> None:
        """The guard's next look."""
        assert guard(self.world.bench()) != ""
        self._tell("guard", "")

    def _tell(self, who: str, what: str) -> None:
        share = self.world.weights().get("2", 0.0)
        side = {0.0: "champion serves", 100.0: "candidate serves"}.get(share, f"candidate has {share:g}%")
        self.told.append(": ".join(filter(None, (who, ", ".join(filter(None, (what, side)))))))

    def __str__(self) -> str:
        return "; ".join(self.told)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients' own pauses are real seconds; ours pass by hand."""
    monkeypatch.setattr(clients, "_ATTEMPTS", 1)
    monkeypatch.setattr(google_apis, "_TRIED_FOR_S", 0.01)


def _serving(made: AnyWorld, patch: pytest.MonkeyPatch) -> AnyWorld:
    """Version 1 serves, and has served for a while; version 2 is as good."""
    patch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    first: Any = release_model("flights", 1, return_state=True)
    assert first.name == "Promoted", first.message
    made.sleep(15 * MINUTE_S)
    made.add("2", Version())
    return made


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: None) -> Iterator[SageMakerWorld]:
    cloud = Cloud(really_waits=False)
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    made = SageMakerWorld(tmp_path, cloud)
    yield _serving(made, monkeypatch)
    made.close()


@pytest.fixture
def gcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient: None) -> Iterator[VertexWorld]:
    made = VertexWorld(tmp_path)
    yield _serving(made, monkeypatch)
    made.close()


def when_the_share_is(world: AnyWorld, percent: float, then: Callable[[], None]) -> None:
    """Do something once, in the second in which the candidate first has this share."""
    done: list[bool] = []

    def look() -> None:
        if not done and world.weights().get("2") == percent:
            done.append(True)
            then()

    world.on_second = look


def die() -> None:
    raise Killed


# -- SageMaker ---------------------------------------------------------------------------------------


def _no_capacity_aws(world: SageMakerWorld, story: Story) -> None:
    world.cloud.no_capacity.add("ml.m5.large")
    story.release(r"InsufficientInstanceCapacity.*sagemaker\.instance_types")
    world.cloud.no_capacity.clear()
    story.release()


def _silent_aws(world: SageMakerWorld, story: Story) -> None:
    world.cloud.silent_rollback = True
    story.release("SageMaker took it back: One or more configured alarms")
    assert world.slots() == ("1", "")
    story.release()


def _throttled_aws(world: SageMakerWorld, story: Story) -> None:
    def begin() -> None:
        until = world.clock.now + 60
        world.cloud.fail_while(lambda: world.clock.now < until, THROTTLED)

    when_the_share_is(world, 5, begin)
    story.release()


def _busy_aws(world: SageMakerWorld, story: Story) -> None:
    def begin() -> None:
        found = world.cloud.sagemaker.endpoints["flights"]
        found.status, found.ready_at = "Updating", world.clock.now + 300
        found.pending = {"weights": {name: one.weight for name, one in found.variants.items()}}

    when_the_share_is(world, 5, begin)
    story.release()


def _expired_aws(world: SageMakerWorld, story: Story) -> None:
    expired: list[bool] = []
    world.cloud.fail_while(lambda: bool(expired), EXPIRED)
    when_the_share_is(world, 25, lambda: expired.append(True))
    story.release("ExpiredTokenException.*renew the credentials")
    expired.clear()
    story.guard()
    story.release()


def _late_aws(world: SageMakerWorld, story: Story) -> None:
    world.cloud.capture_delay_s = 590.0
    story.release()


def _later_aws(world: SageMakerWorld, story: Story) -> None:
    world.cloud.capture_delay_s = 1200.0
    world.sleep(20 * MINUTE_S)
    story.release("no decision within")
    world.cloud.capture_delay_s = 540.0
    world.sleep(20 * MINUTE_S)
    story.release()


def _between_aws(world: SageMakerWorld, story: Story) -> None:
    when_the_share_is(world, 25, die)
    story.killed()
    world.cloud.fail("UpdateEndpointWeightsAndCapacities", Fault("InternalFailure", "sorry", 500))
    with pytest.raises(Exception, match="InternalFailure"):
        transitions.make_safe(world.bench(), world.newest(), who="test", reason="its flow run died")
    story.guard()
    story.release()


# -- Vertex AI ---------------------------------------------------------------------------------------


def _no_capacity_gcp(world: VertexWorld, story: Story) -> None:
    world.double.fail_next("deploy_model", google.no_capacity())
    story.release(r"no capacity.*vertex\.machine_type")
    story.release()


def _silent_gcp(world: VertexWorld, story: Story) -> None:
    when_the_share_is(world, 5, lambda: setattr(world.double, "ignored_updates", 1))
    story.release("asked for the split.*Vertex reports")
    story.release()


def _throttled_gcp(world: VertexWorld, story: Story) -> None:
    def begin() -> None:
        until = world.clock.now + 60
        world.double.fail_while(lambda _: world.clock.now < until, google.throttled())

    when_the_share_is(world, 5, begin)
    story.release()


def _busy_gcp(world: VertexWorld, story: Story) -> None:
    busy = google.Problem(400, "FAILED_PRECONDITION", "The endpoint is being updated.")

    def begin() -> None:
        until = world.clock.now + 300
        world.double.fail_while(lambda verb: verb == "update_endpoint" and world.clock.now < until, busy)

    when_the_share_is(world, 5, begin)
    story.release()


def _expired_gcp(world: VertexWorld, story: Story) -> None:
    expired: list[bool] = []
    world.double.fail_while(lambda _: bool(expired), google.expired())
    when_the_share_is(world, 25, lambda: expired.append(True))
    story.release("credentials have expired")
    expired.clear()
    story.guard()
    story.release()


def _late_gcp(world: VertexWorld, story: Story) -> None:
    world.double.log_delay_s = 590.0
    story.release()


def _later_gcp(world: VertexWorld, story: Story) -> None:
    world.double.log_delay_s = 1200.0
    world.sleep(20 * MINUTE_S)
    story.release("no decision within")
    world.double.log_delay_s = 540.0
    world.sleep(20 * MINUTE_S)
    story.release()


def _etag_gcp(world: VertexWorld, story: Story) -> None:
    """Somebody edits the endpoint twice in the console, between our reading and our writing."""
    conflict = google.Problem(409, "ABORTED", "etag mismatch")
    when_the_share_is(world, 5, lambda: world.double.fail_next("update_endpoint", conflict, times=2))
    story.release()


def _between_gcp(world: VertexWorld, story: Story) -> None:
    """The deployment is done, its answer is lost: the next try finds it by its id."""
    world.double.lose_answer("deploy_model")
    story.release()
    assert world.double.calls.count("deploy_model") == 2, "one for each version, none twice"


TROUBLES: dict[tuple[str, str], Callable[[AnyWorld, Story], None]] = {
    ("no capacity for the candidate", "SageMaker"): _no_capacity_aws,
    ("an update fails silently", "SageMaker"): _silent_aws,
    ("throttled for a minute", "SageMaker"): _throttled_aws,
    ("endpoint busy for five minutes", "SageMaker"): _busy_aws,
    ("credentials expire during the ramp", "SageMaker"): _expired_aws,
    ("captures ten minutes late, as the policy says", "SageMaker"): _late_aws,
    ("captures twenty minutes late, the policy says ten", "SageMaker"): _later_aws,
    ("a failure between two calls", "SageMaker"): _between_aws,
    ("no capacity for the candidate", "Vertex AI"): _no_capacity_gcp,
    ("an update fails silently", "Vertex AI"): _silent_gcp,
    ("throttled for a minute", "Vertex AI"): _throttled_gcp,
    ("endpoint busy for five minutes", "Vertex AI"): _busy_gcp,
    ("credentials expire during the ramp", "Vertex AI"): _expired_gcp,
    ("captures ten minutes late, as the policy says", "Vertex AI"): _late_gcp,
    ("captures twenty minutes late, the policy says ten", "Vertex AI"): _later_gcp,
    ("etag conflict", "Vertex AI"): _etag_gcp,
    ("a failure between two calls", "Vertex AI"): _between_gcp,
}


@pytest.mark.parametrize("trouble", [name for name, platform in TROUBLES if platform == "SageMaker"])
def test_sagemaker_in_trouble_ends_as_documented(aws: SageMakerWorld, trouble: str) -> None:
    story = Story(aws)
    TROUBLES[trouble, "SageMaker"](aws, story)
    assert str(story) == documented().get((trouble, "SageMaker"))


@pytest.mark.parametrize("trouble", [name for name, platform in TROUBLES if platform == "Vertex AI"])
def test_vertex_in_trouble_ends_as_documented(gcp: VertexWorld, trouble: str) -> None:
    story = Story(gcp)
    TROUBLES[trouble, "Vertex AI"](gcp, story)
    assert str(story) == documented().get((trouble, "Vertex AI"))


def test_every_row_of_the_table_was_seen() -> None:
    told = {place for place, cell in documented().items() if not cell.startswith("does not apply")}
    assert told == set(TROUBLES)
