"""The double of Google's services says nothing that they cannot say, and takes nothing that they refuse."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.endpoint import Route, Slot
from tests.doubles.google.http import ROUTES
from tests.doubles.google.shapes import CHECKS, check_answer
from tests.doubles.google.vertex import VertexDouble
from tests.serving.vertex.stand import vertex_endpoint, vertex_policy
from tests.tasks.doubles import HandClock

pytestmark = pytest.mark.slow  # Google's clients take seconds to import
ID = "interlock-flights"
PARENT = "/v1/projects/acme-models/locations/europe-west4"


@pytest.fixture
def service() -> Iterator[VertexDouble]:
    made = VertexDouble(clock=HandClock())
    yield made
    made.close()


@pytest.fixture
def answers(service: VertexDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One answer of each verb, from a version's whole life."""
    import tests.doubles.google.vertex as module

    found: dict[str, Any] = {}

    def note(verb: str, answer: Any) -> None:
        check_answer(verb, answer)
        found[verb] = copy.deepcopy(answer)

    monkeypatch.setattr(module, "check_answer", note)
    policy = vertex_policy(
        request_log={"table": "acme-models.interlock.requests", "delay_s": 0}, metrics_delay_s=0
    )
    endpoint = vertex_endpoint(service, tmp_path, policy=policy, clock=service.clock)
    service.operation_s = 0.4  # so that somebody has to ask for it
    endpoint.deploy(Slot.BLUE, "1", uri="models:/late/1")
    endpoint.apply(Route("flights", 1, Slot.BLUE, "1"))
    endpoint.deploy(Slot.GREEN, "2", uri="models:/late/1")
    _, cursor = endpoint.exchanges(None, limit=1)
    service.clock.now += 60  # type: ignore[attr-defined]
    service.send(ID, b'{"instances": [[1]]}')
    service.clock.now += 120  # type: ignore[attr-defined]
    assert len(endpoint.exchanges(cursor, limit=5)[0]) == 1
    assert len(endpoint.periods(0, service.clock(), edges_ms=())) == 1
    endpoint.invoke(Slot.GREEN, "/invocations", b"{}", content_type="application/json", timeout_s=5)
    endpoint.retire(Slot.GREEN)
    found["get_model"] = service.get_model(next(iter(service.models)))
    found["put_rest"] = found["get_object"]
    return found


def test_every_answer_has_its_type() -> None:
    assert set(CHECKS) == {verb for verb, *_ in ROUTES}


def test_an_answer_with_a_field_of_its_own_does_not_leave(answers: dict[str, Any]) -> None:
    assert set(answers) == set(CHECKS)
    for verb, answer in answers.items():
        check_answer(verb, answer)
        if verb != "invoke":  # a container says what it likes
            with pytest.raises(AssertionError, match="invented"):
                check_answer(verb, {**answer, "invented": 1})


def test_nor_one_deep_inside(answers: dict[str, Any]) -> None:
    series = copy.deepcopy(answers["time_series"])
    series["timeSeries"][0]["points"][0]["value"]["distributionValue"]["invented"] = 1
    row = copy.deepcopy(answers["query"])
    row["rows"][0]["f"][0]["invented"] = 1
    endpoint = copy.deepcopy(answers["get_endpoint"])
    endpoint["deployedModels"][0]["dedicatedResources"]["invented"] = 1
    for verb, answer in (("time_series", series), ("query", row), ("get_endpoint", endpoint)):
        with pytest.raises(AssertionError, match="invented"):
            check_answer(verb, answer)


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("POST", "/endpoints?endpointId=a-b", {"displayName": "a", "invented": 1}, "invented"),
        ("POST", "/endpoints?endpointId=No", {"displayName": "a"}, "endpoint_id"),
        ("POST", "/endpoints?endpointId=a-b", {"displayName": "a", "labels": {"A": "b"}}, "label"),
        ("POST", "/endpoints?endpointId=a-b", {"displayName": 7}, "Invalid JSON payload"),
        ("POST", "/models:upload", {"modelId": "No No", "model": {"displayName": "a"}}, "model_id"),
    ],
)
def test_what_the_types_do_not_allow_is_refused(
    service: VertexDouble, method: str, path: str, body: dict[str, Any], words: str
) -> None:
    reply = httpx.request(method, service.url + PARENT + path, content=json.dumps(body), trust_env=False)
    assert (reply.status_code, reply.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert words in reply.json()["error"]["message"]
