"""The release flow, unchanged, on Vertex AI: Google's real clients against the loopback double."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness

from configs.settings import Settings
from flows.release import release_model
from serving.endpoint import Reply
from serving.vertex.endpoint import VertexEndpoint
from tasks.bench import Bench
from tests.doubles.google.vertex import VertexDouble
from tests.flows.world import Version, World, failing
from tests.serving.vertex.stand import vertex_policy

pytestmark = pytest.mark.slow
CANARY = {"look_every_s": 10, "lease_s": 180, "bake_s": 120, "soak_s": 240, "ask_after_s": 36_000}


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


class DrivenVertex(VertexEndpoint):
    """The platform as it is, and the world's way to send it traffic."""

    def __init__(self, name: str, *, clock: Callable[[], float]) -> None:
        self.service = VertexDouble(clock=clock)
        self.folder = Path()
        super().__init__(
            name,
            vertex_policy(metrics_delay_s=120),
            Settings(google_api_url=self.service.url),
            fetch=self._files,
            clock=clock,
            sleep=lambda _: None,
        )

    def behave(self, version: str, behaviour: Callable[[bytes], Reply]) -> None:
        self.service.behave(version, behaviour)

    def send(self, body: bytes, *, user: str = "") -> None:
        del user
        self.service.send("interlock-flights", json.dumps({"instances": [body.decode()]}).encode())

    def _files(self, uri: str) -> Path:
        made = self.folder / uri.rsplit("/", 1)[1]
        made.mkdir(exist_ok=True)
        (made / "MLmodel").write_text(uri)
        return made


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, requests_per_s=10, platform=DrivenVertex)
    made.endpoint.folder = tmp_path
    canary = made.policy.canary.model_copy(update=CANARY)
    made.policy = made.policy.model_copy(update={"canary": canary, "assign_by": "request"})
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    assert run("1").name == "Promoted"
    made.sleep(600)
    yield made
    made.endpoint.service.close()


def run(version: str) -> State:
    return release_model("flights", int(version), return_state=True)


def test_a_good_version_is_promoted(world: World) -> None:
    world.add("2", Version(skill=1.0))
    state = run("2")
    assert state.name == "Promoted", state.message
    looks = world.journal.looks(world.newest().id, "canary")
    assert {group["pi"] for look in looks[1:] for group in look.stats["groups"]} == {0.05, 0.25, 0.5, 0.95}
    assert world.serving() == ("2", 0)
    split = dict(world.endpoint.service.endpoints["interlock-flights"].traffic_split)
    assert sorted(split.values()) in ([100], [0, 100])


def test_a_version_that_fails_under_live_traffic_is_rolled_back(world: World) -> None:
    world.add("2", Version())

    def worsen() -> None:
        if world.serving()[1] > 0:
            world.versions["2"].answer = failing(0.3)

    world.on_second = worsen
    state = run("2")
    assert (state.name, world.newest().decided_stage) == ("Rejected", "canary"), state.message
    assert world.serving() == ("1", 0)
