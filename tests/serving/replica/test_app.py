"""The app around a model: statuses, health, limits, ids. The model here is a double."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.replica.app import ReplicaApp
from serving.replica.errors import BadInput, ModelFault
from serving.replica.model import Question
from serving.replica.spec import ReplicaSpec

JSON = {"content-type": "application/json"}


class EchoModel:
    """Answers its body's length; `words` in the body make it fail in their way."""

    model_id = "m-1"
    refuses_missing: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()

    def parse(self, body: bytes, content_type: str) -> Question:
        if body == b"bad":
            raise BadInput("Column 'x', row 0: no.", column="x")
        if body == b"surprise":
            raise KeyError("nobody foresaw this")
        return Question(1, data=body)

    def ask(self, question: Question) -> Any:
        if question.data == b"wait":
            self.entered.set()
            assert self.gate.wait(10)
        if question.data == b"fault":
            raise ModelFault("The model failed on this request.") from ValueError("tattletale")
        return [len(question.data)]

    def ask_joined(self, questions: list[Question]) -> list[Any]:
        raise AssertionError("never joined here")


def spec(**more: Any) -> ReplicaSpec:
    values: dict[str, Any] = {
        "endpoint": "flights",
        "slot": "blue",
        "version": "3",
        "uri": "models:/flights/3",
        "port": 1,
        "mlflow_tracking_uri": "http://127.0.0.1:1",
        "model_cache_dir": Path("unused"),
        "max_body_bytes": 1000,
        "request_timeout_s": 60,
    }
    return ReplicaSpec(**(values | more))


Steps = Callable[[httpx.AsyncClient, ReplicaApp, EchoModel], Awaitable[None]]


def run(steps: Steps, *, ready: bool = True, **more: Any) -> None:
    async def inside() -> None:
        app, model = ReplicaApp(spec(**more)), EchoModel()
        if ready:
            app.become_ready(model)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            try:
                await steps(client, app, model)
            finally:
                model.gate.set()
                app.close()

    asyncio.run(inside())


def test_answers_and_says_who_answered() -> None:
    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        reply = await client.post("/invocations", content=b"four", headers=JSON | {"x-request-id": "r-1"})
        assert (reply.status_code, reply.json()) == (200, {"predictions": [4]})
        assert reply.headers["x-interlock-version"] == "3"
        assert reply.headers["x-request-id"] == "r-1"
        version = (await client.get("/version")).json()
        assert (version["version"], version["model_id"], version["stage"]) == ("3", "m-1", "ready")
        metrics = (await client.get("/metrics")).text
        assert 'interlock_replica_requests_total{status="200"} 1.0' in metrics
        assert 'interlock_replica_info{endpoint="flights",slot="blue",version="3"} 1.0' in metrics

    run(steps)


@pytest.mark.parametrize("made_up", ["", "no spaces", "x" * 65, "line\tfeed"])
def test_an_id_that_could_spoil_a_log_is_replaced(made_up: str) -> None:
    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        reply = await client.post("/invocations", content=b"four", headers=JSON | {"x-request-id": made_up})
        assert len(reply.headers["x-request-id"]) == 32

    run(steps)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"bad", 400, "bad_input"),
        (b"surprise", 400, "bad_input"),
        (b"x" * 1001, 413, "body_too_large"),
        (b"fault", 500, "model_fault"),
    ],
)
def test_each_fault_has_its_status(
    body: bytes, status: int, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        reply = await client.post("/invocations", content=body, headers=JSON | {"x-request-id": "r-1"})
        assert (reply.status_code, reply.json()["error"]) == (status, error)
        assert reply.json()["request_id"] == "r-1"
        assert "tattletale" not in reply.text
        if status == 500:
            assert "r-1" in caplog.text
            assert "tattletale" in caplog.text
        if body == b"bad":
            assert reply.json()["column"] == "x"

    run(steps)


def test_a_body_without_a_declared_length_is_limited_too() -> None:
    async def chunks() -> Any:
        for _ in range(200):
            yield b"x" * 100

    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        assert (await client.post("/invocations", content=chunks(), headers=JSON)).status_code == 413

    run(steps)


def test_health_follows_the_life_of_the_replica() -> None:
    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        assert (await client.get("/health")).status_code == 503
        refused = await client.post("/invocations", content=b"four", headers=JSON)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        app.become_ready(model)  # type: ignore[arg-type]
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ping")).json()["status"] == "ready"
        app.drain()
        assert (await client.get("/health")).status_code == 503
        late = await client.post("/invocations", content=b"four", headers=JSON)
        assert (late.status_code, late.headers["connection"]) == (200, "close")

    run(steps, ready=False)


def test_a_slow_model_is_504_and_one_that_hangs_makes_the_replica_unhealthy() -> None:
    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        reply = await client.post("/invocations", content=b"wait", headers=JSON)
        assert (reply.status_code, reply.json()["error"]) == (504, "timeout")
        assert model.entered.is_set()
        while (await client.get("/health")).json()["status"] != "stuck":
            await asyncio.sleep(0.01)
        model.gate.set()
        while (await client.get("/health")).status_code != 200:
            await asyncio.sleep(0.01)

    run(steps, request_timeout_s=0.5, concurrency=1)  # the model is asked before that on any machine


def test_the_loop_stays_free_while_a_prediction_runs() -> None:
    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        slow = asyncio.create_task(client.post("/invocations", content=b"wait", headers=JSON))
        while not model.entered.is_set():
            await asyncio.sleep(0.001)
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/invocations", content=b"four", headers=JSON)).status_code == 200
        assert app.in_flight == 1
        model.gate.set()
        assert (await slow).status_code == 200
        assert app.in_flight == 0

    run(steps, concurrency=2)


def test_other_paths_and_methods() -> None:
    async def steps(client: httpx.AsyncClient, app: ReplicaApp, model: EchoModel) -> None:
        assert (await client.get("/nothing")).status_code == 404
        wrong = await client.get("/invocations")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert (await client.head("/health")).status_code == 200

    run(steps)
