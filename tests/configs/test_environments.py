"""Overlays: merged into the file, validated as a whole policy, compared key by key."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.environments import differences, policy_in
from configs.errors import PolicyInvalid, PolicyNotFound
from configs.loading import load_endpoint, load_policy, production_of
from configs.policy import Policy
from configs.settings import Settings
from tests.configs.policies import VALID, valid_content

STAGED = VALID + (
    "environments:\n"
    "  staging:\n"
    "    canary:\n"
    "      steps: [50, 95]\n"
    "    replicas: {count: 1, concurrency: 8}\n"
    "    load_test: {rate_per_s: 40}\n"
)


def write(folder: Path, text: str) -> Path:
    path = folder / "flights.yaml"
    path.write_text(text)
    return path


def test_sections_are_merged_lists_are_replaced_and_the_endpoint_is_its_own(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, STAGED))
    staging = policy_in(policy, "staging")
    assert staging.endpoint == "flights-staging"
    assert staging.canary.steps == (50, 95)
    assert (staging.canary.bake_s, policy.canary.bake_s) == (60, 60)
    assert policy.canary.steps == (5, 25, 50, 95)
    assert staging.load_test is not None
    assert policy.load_test is None
    assert staging.environments == {}


def test_an_environment_is_found_by_its_endpoints_name(tmp_path: Path) -> None:
    write(tmp_path, STAGED)
    settings = Settings(policy_dir=tmp_path, state_dir=tmp_path / "state")
    assert load_endpoint(settings, "flights").endpoint == "flights"
    assert load_endpoint(settings, "flights-staging").replicas.concurrency == 8
    assert production_of(settings, "flights-staging") == "flights"
    assert production_of(settings, "flights") == "flights"
    assert production_of(settings, "elsewhere-staging") == "elsewhere-staging"
    with pytest.raises(PolicyNotFound):
        load_endpoint(settings, "flights-development")


def test_a_file_of_its_own_is_no_environment(tmp_path: Path) -> None:
    write(tmp_path, STAGED)
    (tmp_path / "flights-staging.yaml").write_text(
        VALID.replace("endpoint: flights", "endpoint: flights-staging")
    )
    settings = Settings(policy_dir=tmp_path, state_dir=tmp_path / "state")
    assert production_of(settings, "flights-staging") == "flights-staging"


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("steps: [50", "stepz: [50", "environments.staging.canary.stepz", "the nearest is 'canary.steps'"),
        ("load_test:", "load_tst:", "environments.staging.load_tst", "the nearest is 'load_test'"),
        ("rate_per_s: 40", "rate_per_s: -1", "environments.staging.load_test.rate_per_s", "above 0"),
        ("steps: [50, 95]", "steps: [95, 50]", "environments.staging.canary", "must rise"),
        ("load_test:", "model: other\n    load_test:", "environments.staging.model", "leave it out"),
        ("  staging:", "  stageing:", "environments.stageing", "the nearest is 'staging'"),
    ],
)
def test_what_is_wrong_in_an_overlay_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, key: str, words: str
) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        load_policy(write(tmp_path, STAGED.replace(old, new)))
    found = {problem.key: problem for problem in caught.value.problems}
    assert key in found, found
    assert words in found[key].message
    assert (found[key].line or 0) >= VALID.count("\n") + 1


def test_differences_are_complete_and_nothing_else() -> None:
    policy = Policy.model_validate(
        {**valid_content(), "environments": {"staging": {"load_test": {"rate_per_s": 9}}}}
    )
    staging = policy_in(policy, "staging")
    found = differences(policy, staging)
    assert found["endpoint"] == ("flights", "flights-staging")
    assert found["load_test.rate_per_s"] == (None, 9)
    assert {key.partition(".")[0] for key in found} == {"endpoint", "load_test"}
    assert differences(policy, policy) == {}
