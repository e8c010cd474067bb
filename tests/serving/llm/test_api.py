"""An API-hosted replica against a provider on the loopback: passed on, mapped, retried in a budget."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2  # the openai client's transport
import pytest
import uvicorn

from configs.serving_runtime import Api
from serving.llm.api_app import ApiApp
from serving.llm.engine import EngineGauges, parse_engine
from serving.llm.errors import NotServable
from serving.llm.provider import ProviderClient, RetryBudget, key_of
from tests.serving.llm.engine import Engine

KEY = "a provider's key"


class Provider:
    """The stand-in engine behind a key check; `refusals` are statuses of the next answers."""

    def __init__(self) -> None:
        self.engine = Engine("gpt-x", "gpt-x")
        self.refusals: list[int] = []
        self.code: str | int = "busy"
        self.asked = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            self.asked += 1
            keys = dict(scope["headers"])
            status = self.refusals.pop(0) if self.refusals else 0
            status = status or (0 if keys[b"authorization"] == f"Bearer {KEY}".encode() else 401)
            if status:
                await Engine.reply(
                    send, status, {"error": {"message": "no: account 4711", "code": self.code}}
                )
                return
        await self.engine(scope, receive, send)


def with_provider(test: Callable[[Provider, ApiApp], Awaitable[None]], **api: Any) -> None:
    async def run() -> None:
        provider, listening = Provider(), socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(provider, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        told = Api(provider="compatible", base_url=f"http://127.0.0.1:{port}/v1", **api)
        client = ProviderClient(told, KEY)
        try:
            await test(provider, ApiApp(client.ask, served_name="chat", model="gpt-x"))
        finally:
            await client.close()
            server.should_exit = True
            await serving
            listening.close()

    asyncio.run(run())


async def ask(app: ApiApp, prompt: str, **more: Any) -> tuple[int, bytes, dict[bytes, bytes]]:
    body = json.dumps({"model": "chat", "prompt": prompt, **more}).encode()
    told: list[dict] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        return told.pop() if told else await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}, receive, send)
    start, *parts = sent
    return start["status"], b"".join(part.get("body", b"") for part in parts), dict(start["headers"])


def test_answers_pass_under_the_endpoints_name() -> None:
    async def test(provider: Provider, app: ApiApp) -> None:
        status, body, _ = await ask(app, "hello")
        assert status == 200
        assert json.loads(body)["model"] == "chat"
        assert "gpt-x" in json.loads(body)["choices"][0]["message"]["content"]
        status, body, headers = await ask(app, "hello", stream=True)
        events = [line for line in body.split(b"\n\n") if line]
        assert headers[b"content-type"].startswith(b"text/event-stream")
        assert json.loads(events[0][6:])["model"] == "chat"
        assert events[-1] == b"data: [DONE]"

    with_provider(test)


def test_only_refusals_are_tried_again() -> None:
    async def test(provider: Provider, app: ApiApp) -> None:
        provider.refusals = [503]
        assert (await ask(app, "hello"))[0] == 200
        assert provider.asked == 2
        assert (await ask(app, "fail"))[0] == 502  # its 500 may have cost money already
        assert provider.asked == 3

    with_provider(test)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(401, 502), (404, 502), (408, 502), (409, 502), (429, 429), (500, 502), (529, 503), (400, 400)],
)
def test_a_providers_errors_are_ours_or_the_clients(theirs: int, ours: int) -> None:
    async def test(provider: Provider, app: ApiApp) -> None:
        provider.refusals = [theirs]
        status, body, headers = await ask(app, "hello")
        assert status == ours
        assert json.loads(body)["error"]["message"]
        assert (b"4711" in body) == (theirs == 400), "the account's words are for nobody else"
        assert (b"retry-after" in headers) == (ours in (429, 503))

    with_provider(test, retries=0)


def test_a_used_up_quota_is_the_endpoints_fault_and_not_asked_again() -> None:
    async def test(provider: Provider, app: ApiApp) -> None:
        provider.refusals, provider.code = [429], "insufficient_quota"
        status, body, headers = await ask(app, "hello")
        assert (status, provider.asked) == (502, 1)
        assert b"4711" not in body
        assert b"retry-after" not in headers

    with_provider(test)


def test_half_an_emoji_passes_both_ways() -> None:
    async def test(provider: Provider, app: ApiApp) -> None:
        status, _, _ = await ask(app, "hello \ud83d")
        assert (status, provider.engine.asked["prompt"]) == (200, "hello \ud83d")

    with_provider(test)
    said = ApiApp(never, served_name="chat", model="gpt-x")._renamed(b'data: {"model":"x","text":"\\ud83d"}')
    assert json.loads(said.decode()[6:]) == {"model": "chat", "text": "\ud83d"}


async def never(_path: str, _body: Any) -> Any:
    raise AssertionError("nobody asked for this")


def test_a_generation_that_may_have_begun_is_not_asked_for_again() -> None:
    async def run() -> None:
        asked = 0

        async def reads_and_drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
            asked += 1
            writer.close()

        async with await asyncio.start_server(reads_and_drops, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            client = ProviderClient(Api(provider="compatible", base_url=url, retries=2), KEY)
            status, body, _ = await ask(ApiApp(client.ask, served_name="chat", model="m"), "hello")
            await client.close()
        assert (status, asked) == (502, 1)
        assert json.loads(body)["error"]["type"] == "provider_unreachable"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("cause", "status", "asked"),
    [("ConnectTimeout", 502, 2), ("ConnectError", 502, 2), ("ReadTimeout", 504, 1), ("WriteError", 502, 1)],
)
def test_only_what_was_never_sent_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, cause: str, status: int, asked: int
) -> None:
    async def test(provider: Provider, app: ApiApp) -> None:
        tries = 0

        async def fails(*_: Any, **__: Any) -> Any:
            nonlocal tries
            tries += 1
            raise getattr(httpx2, cause)("as asked")

        monkeypatch.setattr(httpx2.AsyncClient, "send", fails)
        monkeypatch.setattr("serving.llm.provider._pause", no_pause)
        assert (await ask(app, "hello"))[0] == status
        assert (tries, provider.asked) == (asked, 0)

    with_provider(test, retries=1)


async def no_pause(_: Any) -> None:
    """Retries at once."""


def test_a_provider_that_is_not_there_is_a_bad_gateway() -> None:
    async def run(port: int) -> None:
        client = ProviderClient(Api(provider="compatible", base_url=f"http://127.0.0.1:{port}/v1"), KEY)
        app = ApiApp(client.ask, served_name="chat", model="m")
        assert (await ask(app, "hello"))[0] == 502
        await client.close()

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        asyncio.run(run(deaf.getsockname()[1]))


def test_the_budget_bounds_retries() -> None:
    budget = RetryBudget(0.1)
    taken = 0
    for _ in range(100):
        budget.earn()
        taken += budget.take()
    assert 10 <= taken <= 14
    assert not RetryBudget(0.0).take()


def test_a_missing_key_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(NotServable, match="ANTHROPIC_API_KEY, which is not set"):
        key_of(Api(provider="anthropic"))


def test_a_providers_version_tells_whole_gauges_so_that_limits_for_engines_do_not_hold_it() -> None:
    async def test(_: Provider, app: ApiApp) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "http", "method": "GET", "path": "/metrics", "headers": []}, asyncio.Event, send)
        assert parse_engine(sent[1]["body"].decode()) == EngineGauges(0, 0, 0.0)

    with_provider(test)
