"""Staging inside the release flow: what passes there goes on, nothing of it reaches production's users.

The load is a queue that is simulated; everything around it is real.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.schemas.objects import State
from prefect.testing.utilities import prefect_test_harness

from configs.policy import Replicas
from evals.load import Arrivals
from flows import release as flow_module
from flows.release import release_model
from serving.fake import FakeEndpoint
from serving.gateway.keys import Keys
from serving.records import ReleaseState
from tasks import load_run, staging, sweeping
from tasks.bench import Bench
from tests.evals.test_load import queue
from tests.flows.world import Version, World, failing
from tests.tasks.doubles import Killed

pytestmark = pytest.mark.slow
LOAD = {"rate_per_s": 100, "duration_s": 20, "latency_ms": {"p95": 50}}


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


class Theatre:
    """A staging endpoint in memory, and what a queue of its own makes of the load."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.endpoint = FakeEndpoint("flights-staging", clock=world.clock)
        self.service_s = 0.01
        self.rates: list[float] = []
        self._world = world
        monkeypatch.setattr(staging, "open_staging", self._open)
        monkeypatch.setattr(load_run, "locust_sender", lambda *_: self._send)

    def _open(self, policy: Any, bench: Bench) -> Bench:
        made = self._world.bench()
        made.policy = policy
        made._endpoint = self.endpoint
        for number, version in self._world.versions.items():
            self.endpoint.behave(number, lambda body, it=version: it.answer(body, np.random.default_rng(1)))
        return made

    @property
    def captures(self) -> Path:
        return self._world.settings.captures_dir / "flights-staging"

    @property
    def tenants(self) -> list[str]:
        return [key.tenant for key in Keys(self._world.settings).every()]

    def _send(self, rate: float) -> Arrivals:
        (self.captures / "live").mkdir(parents=True, exist_ok=True)
        assert self.endpoint.describe().route is not None
        self.rates.append(rate)
        return queue(rate, service_s=self.service_s)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An endpoint whose champion is version 1, and whose next release passes staging first."""
    made = World(tmp_path)
    monkeypatch.setattr(Bench, "open", classmethod(lambda _cls, _name, _settings=None: made.bench()))
    made.add("1", Version(skill=0.8))
    assert run(1).name == "Promoted"
    made.clock.now += 60
    made.add("2", Version(skill=1.0))
    environments = {"staging": {"load_test": LOAD}}
    made.policy = made.policy.model_copy(update={"environments": environments})
    return made


@pytest.fixture
def theatre(world: World, monkeypatch: pytest.MonkeyPatch) -> Theatre:
    return Theatre(world, monkeypatch)


def run(version: int, **parameters: Any) -> State:
    """Run the release flow to its final state."""
    return release_model("flights", version, return_state=True, **parameters)


def test_what_staging_bears_is_promoted_and_its_limit_reaches_production(
    world: World, theatre: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.policy = world.policy.model_copy(update={"replicas": Replicas(concurrency=1)})
    limits: list[int | None] = []
    place = flow_module.place_candidate

    def placed(release: Any) -> Any:
        row = place(release)
        limits.append(release.bench.policy.replicas.gateway_limit)
        return row

    monkeypatch.setattr(flow_module, "place_candidate", placed)
    assert run(2).name == "Promoted"
    stored = world.newest().verdicts["stage"]
    found = {one["metric"]: one["candidate"] for one in stored["findings"]}
    assert stored["outcome"] == "PASS"
    assert 160 < found["highest_rate_per_s"] <= 202
    assert limits == [int(found["concurrency_per_replica"])] == [2]
    assert theatre.endpoint.describe().versions == {"blue": "", "green": ""}
    assert not theatre.captures.exists(), "what was sent may be what production's users had sent"
    assert any(name == "load/p95_ms" for name, *_ in world.runs.points)
    assert "What staging bore" in world.runs.documents["report.html"]
    line = next(line for line in world.journal.audit("flights-staging") if line.what == "staging PASS")
    assert line.details["version"] == "2"


def test_a_version_that_is_too_slow_is_rejected_before_it_is_placed(world: World, theatre: Theatre) -> None:
    theatre.service_s = 0.06
    state = run(2)
    assert state.name == "Rejected"
    assert state.message is not None
    assert "p95" in state.message
    assert "2" not in world.slots()
    assert world.newest().decided_stage == "stage"
    assert theatre.endpoint.describe().versions == {"blue": "", "green": ""}
    assert theatre.rates == [100]


def test_one_that_answers_with_errors_never_meets_the_load(world: World, theatre: Theatre) -> None:
    world.add("2", Version(answer=failing(1.0)))
    state = run(2)
    assert state.name == "Rejected"
    assert "smoke test" in str(state.message)
    assert theatre.rates == []


def test_a_load_that_could_not_be_made_holds_and_rejects_nothing(
    world: World, theatre: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(rate: float) -> Arrivals:
        arrivals = queue(rate)
        sent = np.where(np.arange(len(arrivals.due)) % 2, np.nan, arrivals.sent)
        return Arrivals(arrivals.due, sent, np.where(np.isnan(sent), np.nan, arrivals.done), arrivals.status)

    monkeypatch.setattr(theatre, "_send", half)
    assert run(2).name == "Held"
    assert world.newest().state is ReleaseState.HELD


def test_killed_between_two_rates_it_measures_none_of_them_twice(
    world: World, theatre: Theatre, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = theatre._send

    def dies_at_the_third(rate: float) -> Arrivals:
        if len(theatre.rates) == 2:
            raise Killed
        return send(rate)

    with monkeypatch.context() as patched:
        patched.setattr(theatre, "_send", dies_at_the_third)
        patched.setattr(staging, "_take_down", lambda _: None)  # kill -9 runs no `finally`
        with pytest.raises(Killed):
            run(2)
    assert theatre.endpoint.describe().versions["blue"] == "2"
    assert theatre.tenants == ["load-test-flights-staging"]
    assert "flights-staging: taken down, nothing uses it" in sweeping.sweep_endpoint.fn("flights")
    assert theatre.endpoint.describe().versions == {"blue": "", "green": ""}
    assert not theatre.captures.exists()
    assert theatre.tenants == []
    (theatre.captures / "live").mkdir(parents=True)  # killed after the endpoint had gone
    assert "flights-staging: taken down, nothing uses it" in sweeping.sweep_endpoint.fn("flights")
    assert sweeping.sweep_endpoint.fn("flights") == []
    world.clock.now += 60
    assert run(2).name == "Promoted"
    assert len(theatre.rates) == len(set(theatre.rates)) >= 4
    assert world.newest().id == "flights-v2-1"


def test_a_second_rehearsal_finds_the_first_ones_route_and_goes_beyond_it(
    world: World, theatre: Theatre
) -> None:
    assert run(2).name == "Promoted"
    world.clock.now += 7200
    world.add("3", Version(skill=1.0))
    theatre.service_s = 0.06
    assert run(3).name == "Rejected"
    route = theatre.endpoint.describe().route
    assert route is not None
    assert (route.generation, route.default_version) == (2, "3")


def test_a_policy_without_staging_rehearses_nothing(world: World, theatre: Theatre) -> None:
    world.policy = world.policy.model_copy(update={"environments": {}})
    assert run(2).name == "Promoted"
    assert "stage" not in world.newest().verdicts
    assert theatre.endpoint.calls == []
