"""What a clumsy operator writes about language models: one line each, with the key; never another error."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import PolicyError, PolicyInvalid, PolicyNotFound
from configs.loading import load_policy

NAN, INFINITE = float("nan"), float("inf")
SUPPORT: dict[str, Any] = {
    "endpoint": "support",
    "model": "support-llm",
    "owner": "ops@example.org",
    "evaluation": {
        "task": "generation",
        "data": "prompts.jsonl",
        "scorers": [{"kind": "exact_match", "min": 0.5}],
    },
    "shadow": {"enabled": False, "reason": "words differ"},
    "serving": {"runtime": "vllm"},
}
API = {"provider": "openai"}
JUDGE = {"api": {"url": "http://127.0.0.1:9/v1", "model": "j"}, "rubric": "Right.", "labelled": "l.jsonl"}
GUARD = {"check": "personal", "action": "block"}


def refused(folder: Path, text: str) -> list[str]:
    """The lines between the first and "Next:"."""
    path = folder / "support.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    first, *lines, last = str(caught.value).splitlines()
    assert first.endswith("was refused:")
    assert last.startswith("Next: ")
    return lines


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("serving", ["vllm"], "serving must be a section"),
        ("serving.runtime", "vlm", "serving.runtime must be one of"),
        ("serving", {"vllm": {"max_length": 100}}, "serving.vllm has no meaning with serving.runtime pyfunc"),
        ("serving", {"api": API}, "serving.api has no meaning with serving.runtime pyfunc"),
        ("serving.served_name", "", "serving.served_name must not be empty"),
        ("serving.stream_timeout_s", INFINITE, "serving.stream_timeout_s must be a finite number, it is inf"),
        ("serving.vllm", {"gpu_memory": 1.5}, "serving.vllm.gpu_memory must be at most 1.0, it is 1.5"),
        ("serving.vllm", {"gpu_memory": "90%"}, "serving.vllm.gpu_memory must be a number, it is '90%'"),
        ("serving.vllm", {"gpu_memory": NAN}, "serving.vllm.gpu_memory must be a finite number"),
        ("serving.vllm", {"tensor_parallel": 0}, "serving.vllm.tensor_parallel must be at least 1"),
        (
            "serving.vllm",
            {"tensor_parallel": 3, "gpus_per_replica": 2},
            "gpus_per_replica is 2, tensor_parallel needs 3: lower tensor_parallel",
        ),
        (
            "serving.vllm",
            {"tensor_parallel": 2, "gpus_per_replica": 2, "options": {"pipeline_parallel_size": 2}},
            "gpus_per_replica is 2, tensor_parallel needs 4",
        ),
        ("serving.vllm", {"device": "cpu", "gpus_per_replica": 1}, "gpus_per_replica has no meaning with"),
        ("serving.vllm", {"tensor_paralel": 2}, "the nearest is 'serving.vllm.tensor_parallel'"),
        ("serving.vllm", {"command": "vllm serve"}, "serving.vllm.command must be a list"),
        ("serving.vllm", {"environment": ""}, "serving.vllm.environment must not be empty"),
        ("serving.vllm", {"lora": ["tone"]}, "serving.vllm.lora must be a section ('key: value' lines)"),
        ("serving.vllm", {"lora": {"tone": None}}, "serving.vllm.lora.tone must be text, it is empty"),
        ("serving.vllm", {"lora": {"tone": ""}}, "serving.vllm.lora.tone must not be empty"),
        ("serving.vllm", {"lora": {"support": "/tone"}}, "serving.vllm.lora names an adapter support"),
        ("serving.vllm", {"options": ["max-num-seqs"]}, "serving.vllm.options must be a section"),
        ("serving.vllm", {"options": {"--max-num-seqs": 64}}, "'--max-num-seqs' is no option: write it"),
        ("serving.vllm", {"options": {"max-num-seqs": None}}, "max-num-seqs must be text, a number, or"),
        ("serving.vllm", {"options": {"port": 8000}}, "port is not yours to set: each replica is told"),
        (
            "serving.vllm",
            {"options": {"tensor_parallel_size": 2}},
            "tensor_parallel_size is not yours to set: use serving.vllm.tensor_parallel",
        ),
        ("serving.engine", {"waiting": -1}, "serving.engine.waiting must be at least 0"),
        ("serving.engine", {"kv_cache": 90}, "serving.engine.kv_cache must be at most 1.0"),
        ("serving.price", {"input_per_million": 1}, "give input_per_million and output_per_million"),
        ("serving.price", {"replica_per_hour": NAN, "tokens_per_s": 1}, "replica_per_hour must be a finite"),
        ("serving.api", API | {"provider": "opnai"}, "serving.api.provider must be one of"),
        ("serving.api", API | {"base_url": "localhost/v1"}, "base_url must start with http:// or https://"),
        ("serving.api", API | {"key": "sk-1"}, "serving.api.key is not a key; the nearest is"),
        ("serving.api", API | {"key_env": "sk-1"}, "must be the name of an environment variable"),
        ("serving.guards", ["personal"], "serving.guards must be a section"),
        ("serving.guards", {"input": GUARD}, "serving.guards.input must be a list"),
        ("serving.guards", {"input": [GUARD | {"check": "personel"}]}, "no check 'personel': use personal"),
        ("serving.guards", {"input": [{"check": "personal"}]}, "serving.guards.input[0].action is required"),
        ("serving.guards", {"limits": {"max_tokens": "2k"}}, "max_tokens must be a whole number"),
        ("prompt", "support-manner", "prompt must be a section"),
        ("prompt", {}, "prompt.name is required"),
        ("evaluation.scorers", [], "evaluation.scorers must not be empty"),
        ("evaluation.scorers", [{"kind": "exact"}], "evaluation.scorers[0].kind must be one of"),
        (
            "evaluation.scorers",
            [{"kind": "exact_match", "min": 50}],
            "scores are between 0 and 1, 50 is none",
        ),
        (
            "evaluation.scorers",
            [{"kind": "tokens_out", "min": 9, "max": 5}],
            "nothing is at least 9 and at most 5",
        ),
        ("evaluation.scorers", [{"kind": "judge", "margin": 0.1}], "need the section `judge`"),
        ("evaluation.judge", JUDGE | {"api": {"url": "x/v1", "model": "j"}}, "must start with http://"),
        ("shadow", {"text": {"judge_apart": 5}}, "shadow.text.judge_apart needs evaluation.judge"),
        ("canary.measures", ["ttft_ms"], "canary.measures must be a section"),
        ("canary.measures", {"ttft": {}}, "canary.measures.ttft must be one of 'ttft_ms'"),
        ("canary.measures", {"ttft_ms": {"budget": 800}}, "canary.measures.ttft_ms.budget must be a section"),
        ("watch.measures", {"ttft_ms": {"budget": {"p95": -5}}}, "budget.p95 must be above 0.0, it is -5"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_key(
    tmp_path: Path, path: str, value: object, words: str
) -> None:
    content = copy.deepcopy(SUPPORT)
    *parents, last = path.split(".")
    node = content
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    (line,) = refused(tmp_path, yaml.safe_dump(content))
    assert words in line
    assert "sk-1" not in line, "perhaps a secret"


def test_sections_of_language_models_need_one(tmp_path: Path) -> None:
    content = SUPPORT | {"serving": {}, "prompt": {"name": "manner"}, "canary": {"measures": {"ttft_ms": {}}}}
    prompt, measures = refused(tmp_path, yaml.safe_dump(content))
    assert "prompt needs a language model: set serving.runtime" in prompt
    assert "canary.measures are of language models: set serving.runtime" in measures


@pytest.mark.parametrize(
    "text", ["a: &a [*a]\n", "endpoint: &a {b: *a}\n", "environments: &a {staging: *a}\n"]
)
def test_an_alias_that_leads_in_a_circle_is_refused(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path, text)


def test_an_unreadable_character_is_one_line(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, "endpoint: a\x00b\n")
    assert "not YAML" in line


def test_what_is_no_file_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "support.yaml").mkdir()
    with pytest.raises(PolicyNotFound, match=r"it is a folder\nNext: name the file"):
        load_policy(tmp_path / "support.yaml")
    with pytest.raises(PolicyNotFound) as caught:
        load_policy(tmp_path / "suport.yaml")
    assert "did you mean" not in str(caught.value), "a folder is no policy"
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(PolicyNotFound, match="it is no file"):
        load_policy(tmp_path / "pipe.yaml")


def test_unequal_serving_sections_are_fine_where_an_endpoint_moves(tmp_path: Path) -> None:
    content = copy.deepcopy(SUPPORT)
    content["serving"] |= {"api": API, "vllm": {"tensor_parallel": 2, "options": {"max-num-seqs": 8}}}
    path = tmp_path / "support.yaml"
    path.write_text(yaml.safe_dump(content))
    assert load_policy(path).serving.vllm.gpus == 2
    for options, gpus in (
        ({"pipeline-parallel-size": 2}, 4),
        ({"pipeline_parallel_size": 2, "data-parallel-size": "3"}, 12),
    ):
        content["serving"]["vllm"]["options"] = options
        path.write_text(yaml.safe_dump(content))
        assert load_policy(path).serving.vllm.gpus == gpus
    path.write_text(yaml.safe_dump(content | {"endpoint": "x" * 41}))
    with pytest.raises(PolicyInvalid, match="40 in all at most"):
        load_policy(path)
