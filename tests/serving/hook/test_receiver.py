"""The receiver: authentic candidates become one event each; everything else changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serving.hook.app import BODY_BYTES_MAX
from serving.hook.signature import WINDOW_S, SeenDeliveries
from tests.configs.policies import VALID
from tests.serving.hook.deliveries import NOW, Bench, alias_event, headers, signature


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def run(work: Awaitable[Any]) -> Any:
    async def body() -> Any:
        return await work

    return asyncio.run(body())


def test_a_candidate_becomes_one_event(bench: Bench) -> None:
    body = alias_event()
    reply = run(bench.post(body, delivery_id="d-1"))
    assert (reply.status_code, reply.json()) == (200, {"status": "requested", "started": ["flights"]})
    (event,) = bench.prefect.events.values()
    assert event["event"] == "interlock.candidate.requested"
    assert event["resource"]["prefect.resource.id"] == "interlock.endpoint.flights"
    assert event["payload"] == {
        "endpoint": "flights",
        "model": "delays",
        "version": 3,
        "alias": "candidate",
        "delivery_id": "d-1",
        "prompt": 0,
    }


def test_a_prompts_candidate_is_a_release_that_keeps_the_model(bench: Bench) -> None:
    data = {"name": "answers", "alias": "candidate", "version": "2"}
    body = json.dumps({"entity": "prompt_alias", "action": "created", "data": data}).encode()
    assert run(bench.post(body)).json()["status"] == "ignored", "no policy has this prompt"
    policy = bench.folder / "flights.yaml"
    policy.write_text(policy.read_text() + "prompt: {name: answers}\nserving: {runtime: vllm}\n")
    assert run(bench.post(body)).json()["started"] == ["flights"]
    (event,) = bench.prefect.events.values()
    assert (event["payload"]["version"], event["payload"]["prompt"]) == (0, 2)
    same_name = alias_event(model="answers")
    assert run(bench.post(same_name)).json()["status"] == "ignored", "a model of the prompt's name is none"


def test_a_duplicate_is_welcome_and_starts_nothing(bench: Bench) -> None:
    body = alias_event()
    run(bench.post(body, delivery_id="d-1"))
    reply = run(bench.post(body, delivery_id="d-1"))
    assert (reply.status_code, reply.json()["status"]) == (200, "duplicate")
    assert bench.prefect.posts == 1


def test_after_a_restart_a_duplicate_has_the_same_event_id(tmp_path: Path) -> None:
    first, second = Bench(tmp_path), Bench(tmp_path)
    for bench in (first, second):
        run(bench.post(alias_event(), delivery_id="d-1"))
    run(second.post(alias_event(), delivery_id="d-2"))
    assert set(first.prefect.events) < set(second.prefect.events)
    assert len(second.prefect.events) == 2


@pytest.mark.parametrize(
    "answer", [401, 422, 500, 503, httpx.ConnectError("down"), httpx.ReadTimeout("slow")]
)
def test_without_prefect_mlflow_is_told_to_come_back(bench: Bench, answer: int | Exception) -> None:
    bench.prefect.answer = answer
    body, given_headers = alias_event(), headers(alias_event(), delivery_id="d-1")
    reply = run(bench.post(body, given_headers))
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "2"
    assert "said Prefect" not in reply.text
    bench.prefect.answer = 204
    assert run(bench.post(body, given_headers)).json()["status"] == "requested"
    assert len(bench.prefect.events) == 1


@pytest.mark.parametrize(
    "body",
    [
        alias_event(alias="champion"),
        alias_event(model="somebody-elses"),
        json.dumps({"entity": "registered_model", "action": "created", "data": {"name": "delays"}}).encode(),
        json.dumps({"entity": "model_version_alias", "action": "deleted", "data": None}).encode(),
        b"{}",
    ],
)
def test_what_is_none_of_our_business_is_accepted_and_ignored(bench: Bench, body: bytes) -> None:
    reply = run(bench.post(body))
    assert (reply.status_code, reply.json()["status"]) == (200, "ignored")
    assert bench.prefect.posts == 0


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"x-mlflow-signature": "v1," + "A" * 44}, 401),
        ({"x-mlflow-signature": "v2," + signature(alias_event(), "d", str(int(NOW)))[3:]}, 401),
        ({"x-mlflow-signature": "v1,not base64!"}, 401),
        ({"x-mlflow-signature": ""}, 401),
        ({"x-mlflow-delivery-id": "another"}, 401),
        ({"x-mlflow-timestamp": str(int(NOW) + 1)}, 401),
        ({"x-mlflow-timestamp": "soon"}, 400),
        ({"x-mlflow-timestamp": "-1"}, 400),
        ({"x-mlflow-timestamp": "9" * 40}, 400),
        ({"x-mlflow-delivery-id": "a b"}, 400),
        ({"x-mlflow-delivery-id": "a" * 129}, 400),
        ({"x-mlflow-delivery-id": None}, 401),
        ({"x-mlflow-timestamp": None}, 401),
        ({"x-mlflow-signature": None}, 401),
    ],
)
def test_what_is_not_signed_is_refused(bench: Bench, change: dict[str, str | None], status: int) -> None:
    given_headers: dict[str, str | None] = {**headers(alias_event(), delivery_id="d"), **change}
    kept = {name: value for name, value in given_headers.items() if value is not None}
    reply = run(bench.post(alias_event(), kept))
    assert reply.status_code == status
    assert bench.prefect.posts == 0


def test_another_secret_is_refused(bench: Bench) -> None:
    assert run(bench.post(alias_event(), secret=b"guess")).status_code == 401


@pytest.mark.parametrize(
    ("away_s", "status"), [(WINDOW_S - 1, 200), (-WINDOW_S + 1, 200), (301, 401), (-301, 401)]
)
def test_only_the_window_counts_as_now(bench: Bench, away_s: float, status: int) -> None:
    assert run(bench.post(alias_event(), at=NOW + away_s)).status_code == status


def test_a_replay_is_refused_for_ever(bench: Bench) -> None:
    """Inside the window by its id, later by its time: there is no moment between."""
    body, given_headers = alias_event(), headers(alias_event(), delivery_id="d", at=NOW + WINDOW_S)
    run(bench.post(body, given_headers))
    for later_s in range(0, 1500, 50):
        bench.now = NOW + later_s
        run(bench.post(alias_event(alias="champion")))
        reply = run(bench.post(body, given_headers))
        assert reply.status_code == 401 or reply.json()["status"] == "duplicate"
    assert len(bench.prefect.events) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"[" * 50_000,
        b'{"entity":"model_version_alias","action":"created"}',
        b'{"entity":"model_version_alias","action":"created","data":[]}',
        alias_event(version=0),
        alias_event(version="3; drop"),
        alias_event(version="\u0663"),
        alias_event(version=True),
        alias_event(version=None),
        alias_event(version=1.5),
        alias_event(version="1" * 5000),
        b'{"data": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
    ],
)
def test_signed_garbage_is_a_400(bench: Bench, body: bytes) -> None:
    assert run(bench.post(body)).status_code == 400
    assert bench.receiver.counts["faults"] == 0


def test_a_large_body_is_refused_with_and_without_its_length(bench: Bench) -> None:
    body = b" " * (BODY_BYTES_MAX + 1)
    assert run(bench.post(body)).status_code == 413

    async def parts() -> Any:
        for _ in range(5):
            yield b" " * 20_000

    async def chunked() -> httpx.Response:
        transport = httpx.ASGITransport(bench.receiver)
        async with httpx.AsyncClient(transport=transport, base_url="http://hook") as client:
            return await client.post("/registry", content=parts(), headers=headers(b""))

    assert run(chunked()).status_code == 413
    assert run(bench.post(b" " * BODY_BYTES_MAX)).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/registry", 405),
        ("POST", "/", 404),
        ("POST", "/health", 405),
        ("GET", "/health", 200),
        ("HEAD", "/health", 200),
    ],
)
def test_other_paths_and_methods(bench: Bench, method: str, path: str, status: int) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(bench.receiver)
        async with httpx.AsyncClient(transport=transport, base_url="http://hook") as client:
            return await client.request(method, path)

    assert run(ask()).status_code == status


def test_a_repeated_header_is_refused(bench: Bench) -> None:
    async def ask() -> httpx.Response:
        doubled = [*headers(alias_event()).items(), ("x-mlflow-delivery-id", "other")]
        transport = httpx.ASGITransport(bench.receiver)
        async with httpx.AsyncClient(transport=transport, base_url="http://hook") as client:
            return await client.post("/registry", content=alias_event(), headers=doubled)

    assert run(ask()).status_code == 400


def test_a_model_of_two_endpoints_starts_both_at_once(bench: Bench) -> None:
    (bench.folder / "staging.yaml").write_text(VALID.replace("endpoint: flights", "endpoint: staging"))
    assert run(bench.post(alias_event())).json()["started"] == ["flights", "staging"]
    assert bench.prefect.posts == 1
    assert len(bench.prefect.events) == 2


def test_policies_are_read_again_when_they_change(bench: Bench) -> None:
    assert run(bench.post(alias_event(model="other"))).json()["status"] == "ignored"
    (bench.folder / "flights.yaml").write_text(VALID.replace("model: delays", "model: other"))
    (bench.folder / "broken.yaml").write_text("endpoint: [")
    assert run(bench.post(alias_event(model="other"))).json()["status"] == "requested"
    assert run(bench.post(alias_event())).json()["status"] == "ignored"
    assert len(bench.reports) == 1
    assert "broken.yaml" in bench.reports[0]


def test_a_fault_of_ours_asks_for_another_try(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("internal detail")

    monkeypatch.setattr(bench.receiver.watched, "endpoints_of", fail)
    reply = run(bench.post(alias_event()))
    assert reply.status_code == 503
    assert "internal detail" not in reply.text


def test_memory_is_bounded() -> None:
    seen = SeenDeliveries()
    for number in range(25_000):
        seen.add(f"d-{number}", now=NOW)
    assert "d-24999" in seen
    assert "d-0" not in seen


async def call(
    app: Callable[..., Awaitable[None]], scope: dict[str, Any], messages: list[dict[str, Any]]
) -> int:
    """Call an ASGI application with these messages; the status it answered."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    json.loads(sent[1]["body"])
    return sent[0]["status"]


header_values = st.binary(max_size=30) | st.sampled_from([b"1795000000", b"v1,AAAA", b"d-1"])
names = st.sampled_from(
    [b"x-mlflow-delivery-id", b"x-mlflow-timestamp", b"x-mlflow-signature", b"content-length", b"x-other"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "OPTIONS", ""]),
    path=st.sampled_from(["/registry", "/health", "/", "", "/registry/", "/%00", "/registry?x"]),
    fields=st.lists(st.tuples(names, header_values), max_size=6),
    bodies=st.lists(st.binary(max_size=200), max_size=4),
)
@example(method="POST", path="/registry", fields=[(b"content-length", b"9" * 400)], bodies=[])
def test_strangers_get_a_4xx_whatever_they_send(
    bench: Bench, method: str, path: str, fields: list[tuple[bytes, bytes]], bodies: list[bytes]
) -> None:
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    messages.append({"type": "http.request", "body": b""})
    scope = {"type": "http", "method": method, "path": path, "headers": fields}
    status = asyncio.run(call(bench.receiver, scope, messages))
    assert 400 <= status < 500 or (path == "/health" and method == "GET" and status == 200)
    assert bench.prefect.posts == 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["delays", "candidate"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=json_values, alias=json_values, version=json_values, extra=json_values)
def test_whoever_has_the_secret_gets_no_500_either(
    bench: Bench, name: object, alias: object, version: object, extra: object
) -> None:
    body = json.dumps(
        {
            "entity": "model_version_alias",
            "action": "created",
            "data": {"name": name, "alias": alias, "version": version, "more": extra},
            "more": extra,
        }
    ).encode()
    assert run(bench.post(body)).status_code in (200, 400)
    assert bench.receiver.counts["faults"] == 0
