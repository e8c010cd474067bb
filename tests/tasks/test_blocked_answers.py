"""A copy's blocked or broken answer is a failure where a live one is."""

from __future__ import annotations

import json

import pytest

from configs.policy import Policy
from serving.endpoint import Reply
from tasks.previous import is_failure
from tests.configs.policies import valid_content

BLOCKED = json.dumps({"choices": [{"index": 0, "finish_reason": "content_filter"}]}).encode()
STREAMED = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"content_filter"}]}\n\ndata: [DONE]\n\n'


def policy(runtime: str = "vllm", *, counts: bool = True) -> Policy:
    serving = {"runtime": runtime, "guards": {"blocked_is_failure": counts}}
    return Policy.model_validate(valid_content() | {"serving": serving})


@pytest.mark.parametrize("body", [BLOCKED, STREAMED])
def test_blocked_answers_to_copies_fail(body: bytes) -> None:
    reply = Reply(200, body, 1.0)
    assert is_failure(policy(), reply)
    assert not is_failure(policy(counts=False), reply)
    assert not is_failure(policy("pyfunc"), reply)
    assert not is_failure(policy(), Reply(200, body.replace(b"content_filter", b"stop"), 1.0))


def test_broken_answers_to_copies_fail() -> None:
    broken = Reply(200, STREAMED.replace(b"content_filter", b""), 1.0)
    assert is_failure(policy(), broken)
    assert is_failure(policy(counts=False), broken)
    assert not is_failure(policy("pyfunc"), broken)


@pytest.mark.parametrize("counts", [True, False])
def test_answers_that_were_cut_short_fail_where_the_policy_says_so(counts: bool) -> None:
    serving = {"runtime": "vllm", "cut_short_is_failure": counts}
    told = Policy.model_validate(valid_content() | {"serving": serving})
    cut_short, ended = (BLOCKED.replace(b"content_filter", reason) for reason in (b"length", b"stop"))
    assert is_failure(told, Reply(200, cut_short, 1.0)) is counts
    assert not is_failure(told, Reply(200, ended, 1.0))
    with pytest.raises(ValueError, match="is for language models"):
        Policy.model_validate(valid_content() | {"serving": {"cut_short_is_failure": True}})


def test_other_failures_stay() -> None:
    assert is_failure(policy("pyfunc"), Reply(500, b"", 1.0))
    assert is_failure(policy("pyfunc"), Reply(429, b"", 1.0))
    assert not is_failure(policy("pyfunc"), Reply(404, b"", 1.0))
