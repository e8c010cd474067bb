"""The policy's guards: what makes no sense is refused when it is read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from configs.guards import Guards
from configs.policy import Policy
from tests.configs.policies import valid_content, whole_serving

CHECK: dict[str, Any] = {"check": "personal", "action": "block"}


def test_nothing_is_guarded_unless_the_policy_says_so() -> None:
    assert not Guards().is_active
    assert Guards.model_validate({"limits": {"n": 1}}).is_active
    assert Guards.model_validate({"output": [CHECK]}).is_active


def test_a_replica_is_told_the_same() -> None:
    guards = Guards.model_validate(whole_serving()["guards"] | {"output": [CHECK]})
    assert Guards.model_validate_json(guards.model_dump_json()) == guards


@pytest.mark.parametrize(
    ("guards", "words"),
    [
        ({"input": [{"check": "personel", "action": "block"}]}, "no check 'personel'"),
        ({"input": [{"check": "personal", "action": "delete"}]}, "block"),
        ({"input": [{"check": "personal"}]}, "action"),
        ({"input": [CHECK | {"kinds": ["name"]}]}, "kinds"),
        ({"input": [{"check": "acme.find", "action": "block", "kinds": ["email"]}]}, "kinds"),
        ({"input": [{"check": "phrases", "action": "block"}]}, "phrases"),
        ({"input": [{"check": "phrases", "action": "block", "phrases": ["..."]}]}, "without a word"),
        ({"input": [{"check": "injection_phrases", "action": "block", "phrases": ["x"]}]}, "phrases"),
        ({"input": [{"check": "acme.find", "action": "block"}] * 2}, "twice"),
        ({"limits": {"over_max_tokens": "clamp"}}, "max_tokens"),
        ({"limits": {"refused": ["messages"]}}, "no request can do without"),
        ({"limits": {"n": 0}}, "greater than"),
        ({"timeout_s": 0}, "greater than"),
        ({"stream": {"hold_characters": 0}}, "greater than"),
        ({"on_errors": "pass"}, "on_errors"),
    ],
)
def test_nonsense_is_refused(guards: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Guards.model_validate(guards)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"serving": {"guards": {"limits": {"n": 1}}}}, "for language models"),
        (
            {
                "serving": whole_serving() | {"runtime": "vllm", "guards": {"input": [CHECK]}},
                "platform": "vertex",
            },
            "serving.guards needs platform: local",
        ),
    ],
)
def test_where_nothing_stands_before_the_model_guards_are_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Policy.model_validate(valid_content() | more)


def test_they_stand_before_a_provider() -> None:
    serving = whole_serving() | {"runtime": "api", "guards": {"input": [CHECK]}}
    assert Policy.model_validate(valid_content() | {"serving": serving}).serving.guards.is_active
