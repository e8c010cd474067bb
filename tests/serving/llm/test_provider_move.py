"""From a provider to one's own engine behind the real gateway: an ordinary change of the route."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from configs.prices import API_MACHINE, LOCAL_MACHINE
from configs.settings import Settings
from serving.endpoint import Route, Slot
from serving.local import LocalEndpoint
from tests.serving.gateway.lab import Lab, eventually, lab_settings
from tests.serving.llm.conftest import NAME, Chat, chat_policy, id_of, put_version
from tests.serving.llm.engine import WORDS
from tests.serving.llm.prompts import RegistryOfPrompts
from tests.serving.llm.test_api import KEY, Provider
from tests.serving.llm.test_endpoint import STREAM, text_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("provider")]

ROOT = Path(__file__).parents[3]
REGISTERING = """\
import sys
import mlflow
from examples.support_bot.models import register_api

uri, artifacts = sys.argv[1:]
mlflow.set_tracking_uri(uri)
mlflow.set_experiment(experiment_id=mlflow.create_experiment("tests", artifact_location=artifacts))
print(register_api(uri, "support-llm", "gpt-x"))
"""
THEIRS, OURS = (10e-6, 20e-6), (0.0, 1e-5)
"""Dollars of a token in and of a token out."""


@contextmanager
def provider() -> Iterator[tuple[Provider, str]]:
    """Somebody's API that wants a key, in a thread; its base URL."""
    made = Provider()
    server = uvicorn.Server(uvicorn.Config(made, log_level="error", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serve = partial(server.serve, [listening])
        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        eventually(lambda: server.started)
        try:
            yield made, f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(30)


def policy_of(base_url: str) -> dict[str, Any]:
    """Both sides in one policy, each with its price."""
    price = {"input_per_million": THEIRS[0] * 1e6, "output_per_million": THEIRS[1] * 1e6}
    return chat_policy(
        api={"provider": "compatible", "base_url": base_url, "price": price},
        price={"replica_per_hour": 3.6, "tokens_per_s": 100},
    )


@pytest.fixture(scope="module")
def theirs() -> Iterator[tuple[Provider, str]]:
    with provider() as made:
        yield made


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, theirs: tuple[Provider, str]) -> Iterator[Chat]:
    """Version 1 is the provider's and serves from blue; version 2 are weights and wait in green."""
    folder = tmp_path_factory.mktemp("provider")
    registry = f"sqlite:///{folder}/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-c", REGISTERING, registry, f"file://{folder}/artifacts"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    number = done.stdout.splitlines()[-1]
    lab = Lab(lab_settings(folder, mlflow_tracking_uri=registry))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LLM_API_KEY", KEY)
        try:
            lab.up()
            endpoint = lab.endpoint(NAME, **policy_of(theirs[1]))
            endpoint.deploy(Slot.BLUE, number, uri=f"models:/support-llm/{number}")
            endpoint.apply(lab.route(NAME))
            url = f"http://127.0.0.1:{lab.settings.gateway_port}/{NAME}/v1"
            with openai.OpenAI(base_url=url, api_key=lab.key, max_retries=0, timeout=60) as client:
                made = Chat(lab, endpoint, client)
                endpoint.deploy(Slot.GREEN, "2", uri=put_version(lab, "2"))
                made.route()
                yield made
        finally:
            lab.down()


def test_a_provider_is_a_replica_like_any_other(chat: Chat, theirs: tuple[Provider, str]) -> None:
    asked = theirs[0].asked
    answer = chat.ask("hello")
    assert answer.choices[0].message.content == "gpt-x " * WORDS
    assert answer.model == NAME
    assert text_of(chat.ask("hello", **STREAM)) == "gpt-x " * WORDS
    assert theirs[0].asked == asked + 2
    replicas = chat.endpoint.describe().replicas
    assert [(one.healthy, one.machine) for one in replicas[Slot.BLUE]] == [(True, API_MACHINE)]
    assert [(one.healthy, one.machine) for one in replicas[Slot.GREEN]] == [(True, LOCAL_MACHINE)]


def test_both_share_the_traffic_and_users_stay(chat: Chat) -> None:
    chat.route(share_bp=5000)
    seen: defaultdict[int, set[str]] = defaultdict(set)
    for turn in range(2):
        for user in range(20):
            stream = chat.ask(f"turn {turn}", extra_headers={"x-user-id": f"user-{user}"}, **STREAM)
            seen[user].add(text_of(stream).split()[0])
    assert all(len(versions) == 1 for versions in seen.values())
    assert set.union(*seen.values()) == {"gpt-x", "weights-2"}


@pytest.mark.parametrize(("share_bp", "version", "price"), [(0, "1", THEIRS), (10_000, "2", OURS)])
def test_each_is_measured_by_its_own_price(
    chat: Chat, share_bp: int, version: str, price: tuple[float, float]
) -> None:
    chat.route(share_bp=share_bp)
    cursor = chat.endpoint.observations(None).cursor
    stream = chat.ask("hello there", **STREAM)
    text_of(stream)
    streamed, whole = chat.observed(cursor, id_of(stream), chat.ask("hello")._request_id)
    for row in (streamed, whole):
        assert row["version"] == version
        assert row["tokens_out"] == WORDS
        assert row["cost_usd"] == pytest.approx(row["tokens_in"] * price[0] + WORDS * price[1])
    assert 0 < streamed["ttft_ms"] < streamed["service_ms"]


def test_the_way_back_cuts_no_stream(chat: Chat) -> None:
    chat.route(share_bp=10_000)
    stream = chat.ask("slow", **STREAM)
    assert next(iter(stream)).choices[0].delta.content == "weights-2 "
    chat.route()
    assert chat.ask("hello").choices[0].message.content == "gpt-x " * WORDS
    assert text_of(stream) == "weights-2 " * (WORDS - 1)


def test_behind_a_prompt_it_costs_the_same(chat: Chat, theirs: tuple[Provider, str]) -> None:
    """A front records, and its engine knows whose the model is."""
    folder = chat.lab.settings.state / "models" / "m-8"
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text("metadata:\n  interlock: {runtime: api, model: gpt-x}\n")
    with RegistryOfPrompts({("manner", "1"): "Be kind."}) as mlflow:
        settings = Settings(**chat.lab.settings.model_dump() | {"mlflow_tracking_uri": mlflow.url})
        policy = chat.lab.endpoint("paired", **policy_of(theirs[1]), prompt={"name": "manner"})._policy
        endpoint = LocalEndpoint("paired", policy, settings, chat.lab.supervisor)
        endpoint.deploy(Slot.BLUE, "8+p1", uri="models:/m-8")
        endpoint.apply(Route("paired", 1, Slot.BLUE, "8+p1"))
    cursor = endpoint.observations(None).cursor
    url = str(chat.client.base_url).replace(NAME, "paired")
    with openai.OpenAI(base_url=url, api_key=chat.lab.key, max_retries=0, timeout=60) as client:
        answer = client.chat.completions.create(
            model="paired", messages=[{"role": "user", "content": "hello"}]
        )
    assert answer.choices[0].message.content == "gpt-x " * WORDS
    assert theirs[0].engine.asked["messages"][0]["content"] == "Be kind."
    (row,) = Chat(chat.lab, endpoint, client).observed(cursor, answer._request_id)
    assert row["cost_usd"] == pytest.approx(row["tokens_in"] * THEIRS[0] + WORDS * THEIRS[1])
    assert endpoint.describe().replicas[Slot.BLUE][0].machine == API_MACHINE
