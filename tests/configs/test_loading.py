"""Policy files: what is accepted, and what an operator is told about one that is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import (
    PolicyError,
    PolicyInvalid,
    PolicyNotFound,
    PolicySyntaxError,
    SettingsInvalid,
)
from configs.keys import policy_keys
from configs.loading import load_policies, load_policy, load_settings, unknown_variables
from tests.configs.policies import VALID, generation_content, valid_content, whole_sagemaker


def write(folder: Path, text: str, name: str = "flights.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(folder: Path, text: str, name: str = "flights.yaml") -> dict[str, str]:
    with pytest.raises(PolicyInvalid) as caught:
        load_policy(write(folder, text, name))
    found: dict[str, str] = {}
    for problem in caught.value.problems:
        found[problem.key] = "\n".join(filter(None, (found.get(problem.key), str(problem))))
    return found


def test_a_valid_file_becomes_a_policy(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, VALID))
    assert policy.endpoint == "flights"
    assert policy.canary.steps == (5, 25, 50, 95)
    assert policy.canary.bake_s == 60


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("owner: ops", "ownr: ops", "ownr", "line 3: ownr is not a key; the nearest is 'owner'"),
        ("bake_s: 60", "bake: 60", "canary.bake", "nearest is 'canary.bake_s'"),
        ("min: 0.5", "mim: 0.5", "evaluation.metrics[0].mim", "nearest is 'evaluation.metrics[0].min'"),
        ("owner: ops", "min_pairs: 3\nowner: ops", "min_pairs", "nearest is 'shadow.min_pairs'"),
        ("bake_s: 60", "bake_s: soon", "canary.bake_s", "must be a number, it is 'soon'"),
        ("bake_s: 60", "bake_s: 40000", "canary", "look_every_s must be at least 2.44"),
        ("bake_s: 60", "bake_s: -1", "canary.bake_s", "must be at least 0.0, it is -1"),
        ("task: classification", "task: clasification", "evaluation.task", "the nearest is 'classification'"),
        ("steps: [5, 25, 50, 95]", "steps: [50, 25]", "canary", "canary.steps must rise"),
        ("steps: [5, 25, 50, 95]", "steps: []", "canary.steps", "must not be empty"),
        ("shadow:\n  score_tolerance: 0.1", "shadow: {}", "shadow", "score_tolerance has no default"),
        ("shadow:\n  score_tolerance: 0.1", "shadow: 3", "shadow", "must be a section"),
        ("owner: ops@example.org\n", "", "owner", "is required: Who is told."),
        ("owner: ops@example.org", "owner: a\nowner: b", "owner", "is given twice, first in line 3"),
        ("endpoint: flights", "endpoint: trains", "endpoint", "name the file trains.yaml"),
        ("endpoint: flights", "endpoint: Flights_", "endpoint", "must start with a lowercase letter"),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, old: str, new: str, key: str, words: str) -> None:
    assert old in VALID
    found = problems(tmp_path, VALID.replace(old, new))
    assert words in found[key]
    assert len(found) <= 2


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            "approval: {required: true, before: shadow}",
            "before a person said yes: set approval.before: canary",
        ),
        ("environments: {staging: {owner: me@example.org}}", "before staging has measured"),
        ("  latency_ms: {p95: 250}", "latency_ms and cost time calls"),
        ("  cost: {per_hour_usd: 1, margin: 0.1}", "latency_ms and cost time calls"),
    ],
)
def test_a_start_before_what_has_to_come_first_is_refused(tmp_path: Path, extra: str, words: str) -> None:
    text = VALID + "replicas: {start_early: true}\n"
    assert load_policy(write(tmp_path, text)).replicas.start_early
    wrong = text.replace("shadow:\n", f"{extra}\nshadow:\n") if extra[0] == " " else f"{text}{extra}\n"
    assert words in "".join(problems(tmp_path, wrong).values())


def test_every_problem_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    text = VALID.replace("bake_s: 60", "bake: 60").replace("label: late", "lable: late")
    with pytest.raises(PolicyInvalid) as caught:
        load_policy(write(tmp_path, text))
    lines = {problem.key: problem.line for problem in caught.value.problems}
    assert lines == {"evaluation.lable": 6, "evaluation.label": 4, "canary.bake": 15}
    assert str(caught.value).count("line ") == 3
    assert "Next:" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("endpoint: [1\nmodel: x", "line 2"),
        ("a:\n\tb: 1", "line 2"),
        ("day: 2013-02-31", "day is out of range"),
        ("a: !!python/object/apply:os.system [ls]", "line 1"),
        ("? [a, b]\n: c", "line 1"),
        ("[" * 600, "nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_said_to_be_so(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(PolicySyntaxError, match=words):
        load_policy(write(tmp_path, text))


@pytest.mark.parametrize("text", ["", "# only a comment", "- a\n- b", "just words", "3"])
def test_a_document_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PolicyInvalid, match="a policy is a list of 'key: value' lines"):
        load_policy(write(tmp_path, text))


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, VALID)
    with pytest.raises(PolicyNotFound, match=r"did you mean .*flights\.yaml"):
        load_policy(tmp_path / "flight.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flights.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicySyntaxError, match="UTF-8"):
        load_policy(tmp_path / "flights.yaml")


def test_one_broken_file_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, VALID)
    write(tmp_path, "endpoint: [", "broken.yaml")
    policies, errors = load_policies(tmp_path)
    assert list(policies) == ["flights"]
    assert [error.path.name for error in errors] == ["broken.yaml"]
    assert load_policies(tmp_path / "missing") == ({}, [])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
paths = st.sampled_from([key.path.replace("[]", "") for key in policy_keys()])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=paths, value=values)
def test_no_value_anywhere_escapes_as_another_error(tmp_path: Path, path: str, value: object) -> None:
    content = valid_content()
    node = content
    *parents, last = path.split(".")
    for part in parents:
        following = node.setdefault(part, {})
        node = following[0] if isinstance(following, list) else following
    node[last] = value
    path_of_file = write(tmp_path, yaml.safe_dump(content))
    with contextlib.suppress(PolicyError):
        assert load_policy(path_of_file).endpoint == "flights"


def test_settings_errors_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_GATEWAY_PORT", "eighty")
    with pytest.raises(
        SettingsInvalid, match="INTERLOCK_GATEWAY_PORT must be a whole number, it is 'eighty'"
    ):
        load_settings()


def test_a_mistyped_variable_is_noticed() -> None:
    found = unknown_variables({"INTERLOCK_GATEWAY_PROT": "1", "INTERLOCK_HOOK_PORT": "2", "PATH": "/bin"})
    assert found == {"INTERLOCK_GATEWAY_PROT": "INTERLOCK_GATEWAY_PORT"}


def with_labels(content: dict[str, Any]) -> None:
    content["canary"] = {"quality": {}}


def on_a_counting_platform(content: dict[str, Any]) -> None:
    content |= {"labels": {}, "platform": "sagemaker", "sagemaker": whole_sagemaker(), "assign_by": "request"}
    content["canary"] = {"quality": {}}


def without_captures(content: dict[str, Any]) -> None:
    content |= {"drift": {}, "labels": {}, "watch": {"quality": 0.9}}
    content |= {"platform": "sagemaker", "sagemaker": whole_sagemaker(), "assign_by": "request"}


def with_a_cost(content: dict[str, Any]) -> None:
    content["evaluation"] = generation_content() | {"scorers": [{"kind": "cost", "max": 1}], "slices": []}


def with_a_cost_at_a_provider(content: dict[str, Any]) -> None:
    with_a_cost(content)
    content["serving"] = {"runtime": "api", "api": {"provider": "openai"}}


def with_own_prices_for_a_provider(content: dict[str, Any]) -> None:
    price = {"replica_per_hour": 1, "tokens_per_s": 10}
    content["serving"] = {"runtime": "api", "api": {"provider": "openai"}, "price": price}


def watching_measures_elsewhere(content: dict[str, Any]) -> None:
    content["watch"] = {"measures": {"ttft_ms": {"budget": {"p95": 800}}}}
    content |= {"platform": "sagemaker", "sagemaker": whole_sagemaker(), "assign_by": "request"}


def watching_a_measure_without_a_budget(content: dict[str, Any]) -> None:
    content["watch"] = {"measures": {"ttft_ms": {"budget": {}}}}


def rehearsed_with_captures(content: dict[str, Any]) -> None:
    content["evaluation"] = generation_content()
    content["environments"] = {"staging": {"load_test": {"rate_per_s": 1, "payloads": "captures"}}}


def rehearsed_without_prompts(content: dict[str, Any]) -> None:
    content |= {"serving": {"runtime": "vllm"}, "environments": {"staging": {}}}


def limiting_engines_that_do_not_tell(content: dict[str, Any]) -> None:
    vllm = {"options": {"disable_log_stats": True}}
    content["serving"] = {"runtime": "vllm", "vllm": vllm, "engine": {"waiting": 8}}


def limiting_engines_of_no_language_model(content: dict[str, Any]) -> None:
    content["serving"] = {"engine": {"kv_cache": 0.9}}


def limiting_engines_elsewhere(content: dict[str, Any]) -> None:
    content["serving"] = {"runtime": "vllm", "engine": {"waiting": 8}}
    content |= {"platform": "sagemaker", "sagemaker": whole_sagemaker(), "assign_by": "request"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (limiting_engines_that_do_not_tell, "serving.engine limits gauges that disable-log-stats takes away"),
        (limiting_engines_of_no_language_model, "serving.engine is for language models"),
        (limiting_engines_elsewhere, "serving.engine needs platform: local"),
        (rehearsed_with_captures, "load_test.payloads: captures is not for language models"),
        (rehearsed_without_prompts, "needs evaluation.task: generation"),
        (watching_measures_elsewhere, "watch.measures needs platform: local"),
        (watching_a_measure_without_a_budget, "a budget needs p50, p95 or p99"),
        (with_labels, "canary.quality needs a section `labels:`"),
        (on_a_counting_platform, "canary.quality needs platform: local"),
        (
            without_captures,
            "drift needs platform: local: it goes by what replicas of ours captured",
        ),
        (without_captures, "labels needs platform: local"),
        (without_captures, "watch.quality needs platform: local"),
        (with_a_cost, "the scorer `cost` needs serving.price"),
        (with_a_cost_at_a_provider, "the scorer `cost` needs serving.api.price"),
        (with_own_prices_for_a_provider, "versions of a provider cost serving.api.price"),
    ],
)
def test_sections_that_need_another_say_so(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    content = valid_content()
    change(content)
    assert words in str(problems(tmp_path, yaml.safe_dump(content)))
