"""Language models behind the real gateway: streams, stickiness, cuts, measures, drains."""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serving.capture.reader import read_captures
from serving.endpoint import Slot
from serving.errors import NotHealthy
from serving.slots import SlotFiles
from tests.serving.gateway.lab import eventually
from tests.serving.llm.bare import await_models, bare_engine
from tests.serving.llm.conftest import ENGINE, NAME, SPOOL_START, Chat, chat_policy, id_of, put_version
from tests.serving.llm.engine import ARGUMENTS, WORDS
from tests.serving.llm.parity import called, outcomes, outcomes_async

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chat")]

STREAM: dict[str, Any] = {"stream": True, "max_tokens": 32}


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_the_official_client_needs_a_url_and_a_key_only(chat: Chat) -> None:
    assert [model.id for model in chat.client.models.list()] == [NAME]
    answer = chat.ask("hello")
    assert answer.choices[0].message.content == "weights-1 " * WORDS
    assert answer.model == NAME
    assert text_of(chat.ask("hello", **STREAM)) == "weights-1 " * WORDS


def test_the_gateway_behaves_as_an_engine_by_itself(chat: Chat, tmp_path: Path) -> None:
    (record,) = [one for one in SlotFiles(chat.lab.settings).every() if one.slot is Slot.BLUE]
    weights = chat.lab.settings.state / "models" / "m-1" / "artifacts" / f"weights-{record.version}"
    with bare_engine(ENGINE, weights, NAME, tmp_path / "engine.log") as url:
        await_models(url, 120)
        ours, theirs = (str(chat.client.base_url), chat.lab.key), (url, "none")
        seen, seen_async = outcomes(*ours), outcomes_async(*ours)
        assert seen == outcomes(*theirs)
        assert seen_async == outcomes_async(*theirs)
    for found in (seen, seen_async):
        for name in ("tool required", "tool required stream", "tool named", "tool named stream"):
            assert called(found[name]) == ("look_up", '{"order": "A17"}', "tool_calls")
        assert len(found["tool named stream"]) > len(ARGUMENTS), "in as many pieces as the engine sent"
        assert len(found["vectors"]["data"][1]["embedding"]) == 5
        assert found["bad tool"][:2] == ("BadRequestError", 400)


def test_a_list_of_models_is_no_evidence(chat: Chat) -> None:
    cursor = chat.endpoint.observations(None).cursor
    listed = chat.client.models.with_raw_response.list()
    assert listed.headers["x-interlock-version"] == "1"
    answered = chat.ask("hello")._request_id
    assert chat.lab.log_of(listed.headers["x-request-id"])["slot"] == "-"
    chat.observed(cursor, answered)
    assert listed.headers["x-request-id"] not in set(chat.endpoint.observations(cursor).frame["request_id"])


def test_a_client_that_did_not_ask_for_usage_gets_none(chat: Chat) -> None:
    assert all(chunk.choices and not chunk.usage for chunk in chat.ask("hello", **STREAM))
    asked = list(chat.ask("hello", **STREAM, stream_options={"include_usage": True}))
    assert asked[-1].usage.completion_tokens == WORDS


def test_a_wrong_key_and_a_wrong_method_are_refused(chat: Chat) -> None:
    url = f"http://127.0.0.1:{chat.lab.settings.gateway_port}/{NAME}/v1"
    with (
        openai.OpenAI(base_url=url, api_key="ilk_wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    assert chat.lab.ask(path=f"/{NAME}/v1/models").status == 405
    assert chat.lab.ask(path=f"/{NAME}/v1/completions", method="GET").status == 405
    assert chat.lab.ask(path=f"/{NAME}/metrics", method="GET").status == 404


def test_words_come_as_they_are_said(chat: Chat) -> None:
    stream = iter(chat.ask("slow", **STREAM))
    next(stream)
    assert chat.metric(Slot.BLUE, "vllm:num_requests_running") == 1
    assert text_of(stream) == "weights-1 " * (WORDS - 1)


def test_a_client_that_leaves_stops_the_generation(chat: Chat) -> None:
    before = chat.metric(Slot.BLUE, "test:aborted")
    stream = chat.ask("slow", **STREAM)
    next(iter(stream))
    stream.close()
    eventually(lambda: chat.metric(Slot.BLUE, "test:aborted") == before + 1)


def test_a_conversation_stays_on_one_version(chat: Chat) -> None:
    chat.route(share_bp=5000)
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for turn in range(3):
        for number in range(20):
            headers = {"x-conversation-id": f"talk-{number}"}
            answer = chat.ask(f"turn {turn}", extra_headers=headers)
            seen[f"talk-{number}"].add(answer.choices[0].message.content.split()[0])
    assert all(len(versions) == 1 for versions in seen.values())
    assert set.union(*seen.values()) == {"weights-1", "weights-2"}


def test_a_rollback_cuts_no_stream(chat: Chat) -> None:
    chat.route(share_bp=10_000)
    streams = [chat.ask("slow", **STREAM) for _ in range(4)]
    began = [next(iter(stream)).choices[0].delta.content for stream in streams]
    assert began == ["weights-2 "] * 4
    chat.route()
    assert chat.ask("hello").choices[0].message.content.startswith("weights-1")
    assert [text_of(stream) for stream in streams] == ["weights-2 " * (WORDS - 1)] * 4


def test_every_request_is_measured(chat: Chat) -> None:
    chat.route()
    cursor = chat.endpoint.observations(None).cursor
    stream = chat.ask("hello there", **STREAM)
    text_of(stream)
    answer = chat.ask("hello")
    with pytest.raises(openai.InternalServerError) as fault:
        chat.ask("fail")
    asked = id_of(stream), answer._request_id, fault.value.request_id
    streamed, whole, failed = chat.observed(cursor, *asked)
    assert 0 < streamed["ttft_ms"] < streamed["service_ms"]
    assert streamed["itl_ms"] > 0
    assert streamed["tokens_out"] == WORDS
    assert streamed["cost_usd"] == pytest.approx(streamed["tokens_in"] * 1e-6 + WORDS * 2e-6)
    assert streamed["stratum"].startswith("stream/")
    assert whole["ttft_ms"] != whole["ttft_ms"]
    assert whole["tokens_out"] == WORDS
    assert failed["failed"]
    assert failed["cost_usd"] != failed["cost_usd"]


def test_answers_that_break_off_are_failures_of_their_version(chat: Chat) -> None:
    """An engine of its own: it is killed."""
    endpoint = chat.lab.endpoint("frail", **chat_policy(stream_timeout_s=5))
    endpoint.deploy(Slot.BLUE, "1", uri=put_version(chat.lab, "1"))
    endpoint.apply(chat.lab.route("frail"))
    cursor = endpoint.observations(None).cursor
    url = f"http://127.0.0.1:{chat.lab.settings.gateway_port}/frail/v1"
    with openai.OpenAI(base_url=url, api_key=chat.lab.key, max_retries=0, timeout=60) as client:

        def stream(text: str) -> Any:
            return client.chat.completions.create(
                model="frail", messages=[{"role": "user", "content": text}], **STREAM
            )

        whole = stream("hello")
        text_of(whole)
        with stream("slow") as left:
            next(iter(left))
        broken = []
        for how in ("in-band", "raise", "die"):
            broken.append(stream(how))
            with pytest.raises((openai.APIError, httpx.RemoteProtocolError)):
                text_of(broken[-1])
    expected = {id_of(one): (200, one in broken) for one in (whole, left, *broken)}

    def seen() -> dict[str, tuple[int, bool]]:
        rows = endpoint.observations(cursor).frame.to_dict("records")
        return {row["request_id"]: (row["status"], row["failed"]) for row in rows}

    eventually(lambda: seen() == expected)  # what the log cannot tell the replica's measures do, later
    chat.lab.forget("frail")


def test_captures_hold_no_word_of_a_conversation(chat: Chat) -> None:
    chat.ask("my secret is 42", **STREAM).close()
    stream = chat.ask("my secret is 42", **STREAM)
    text_of(stream)

    def spooled() -> set[str]:
        exchanges, _ = chat.endpoint.exchanges(SPOOL_START, limit=10_000)
        return {one.request_id for one in exchanges if b"secret" in one.request}

    eventually(lambda: id_of(stream) in spooled())  # exact, as a shadow needs it
    folder = chat.lab.settings.captures_dir / NAME
    eventually(lambda: spooled() <= set(read_captures(folder)["request_id"]))
    found = read_captures(folder)
    bodies = " ".join([*found["inputs"].dropna(), *found["outputs"].dropna()])
    assert "messages" in bodies
    assert "finish_reason" in bodies
    assert "secret" not in bodies
    assert "weights-" not in bodies


def test_a_new_replica_warms_up_on_recent_prompts(chat: Chat) -> None:
    name = chat.endpoint.describe().replicas[Slot.GREEN][0].name
    log = (chat.lab.settings.logs_dir / f"{name}.log").read_text()
    prompts = int(log.split("Ready on port ")[1].split(" after ")[1].split()[0])
    assert prompts == 1 + 5


def test_engines_tell_how_busy_they_are(chat: Chat) -> None:
    engines = chat.endpoint.engines()
    assert {slot: len(found) for slot, found in engines.items()} == {Slot.BLUE: 1, Slot.GREEN: 1}
    (gauges,) = engines[Slot.BLUE].values()
    assert (gauges.waiting, gauges.kv_cache) == (0, 0.25)


def test_a_replica_without_a_free_gpu_says_so(chat: Chat) -> None:
    policy = chat_policy(vllm={"device": "gpu", "command": ["never-started"]})
    endpoint = chat.lab.endpoint("greedy", **policy)
    with pytest.raises(NotHealthy, match="Asked for free GPUs: 1, found 0"):
        endpoint.deploy(Slot.BLUE, "1", uri=put_version(chat.lab, "1"))


def test_retiring_waits_for_the_last_stream(chat: Chat) -> None:
    """Last: it empties the green slot."""
    chat.route(share_bp=10_000)
    stream = chat.ask("slow", **STREAM)
    first = next(iter(stream)).choices[0].delta.content
    chat.endpoint.apply(chat.lab.route(NAME))
    retiring = threading.Thread(target=chat.endpoint.retire, args=(Slot.GREEN,))
    retiring.start()
    assert first + text_of(stream) == "weights-2 " * WORDS
    retiring.join(60)
    assert not retiring.is_alive()
    assert chat.endpoint.describe().versions[Slot.GREEN] == ""
