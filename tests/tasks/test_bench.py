"""The bench: what it opens follows the policy that it has now, and a way back needs none of long ago."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.policy import Policy
from configs.settings import Settings
from serving.errors import Refused
from serving.fake import FakeEndpoint
from serving.records import ReleaseRow, ReleaseState
from tasks import bench as module
from tasks import waiting
from tasks.bench import Bench
from tests.configs.policies import valid_content
from tests.tasks.test_transitions import POLICY, World


def test_a_platform_opened_before_the_policy_changed_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Staging's measured limit comes into the policy when the endpoint has long been asked things."""
    opened: list[int | None] = []

    def open_endpoint(policy: Policy, *_: object, **__: object) -> FakeEndpoint:
        opened.append(policy.replicas.gateway_limit)
        return FakeEndpoint(policy.endpoint)

    monkeypatch.setattr(module, "open_endpoint", open_endpoint)
    policy = Policy.model_validate(valid_content())
    bench = Bench(policy, Settings(state_dir=tmp_path))
    assert bench.endpoint is bench.endpoint
    replicas = policy.replicas.model_copy(update={"gateway_limit": 7})
    bench.policy = policy.model_copy(update={"replicas": replicas})
    assert bench.endpoint is bench.endpoint
    assert opened == [None, 7]


OF_LONG_AGO = {**POLICY.model_dump(mode="json"), "a_key_of_long_ago": 1}
"""As a release may have it stored: today's rules refuse it."""


def stored(world: World, policy: object) -> ReleaseRow:
    """An interrupted release that began under a policy, the newest."""
    world.clock.now += 1
    return world.journal.add_release("flights", "2", champion="1", policy=policy, now=world.clock.now)  # type: ignore[arg-type]


@pytest.mark.parametrize("is_over", [True, False], ids=["over", "open"])
def test_a_release_of_long_ago_stands_in_no_way_back(tmp_path: Path, *, is_over: bool) -> None:
    world = World(tmp_path)
    world.first_champion()
    release = stored(world, OF_LONG_AGO)
    if is_over:
        world.journal.end_release(release.id, state=ReleaseState.REJECTED, reason="bad", now=world.clock.now)
    settings = Settings(state_dir=tmp_path, policy_dir=tmp_path / "policies")
    with pytest.raises(ConfigError):
        Bench.rescue("flights", settings)
    settings.policy_dir.mkdir()
    settings.policy_path("flights").write_text(json.dumps(POLICY.model_dump(mode="json")))
    assert Bench.rescue("flights", settings).policy == POLICY


def test_an_open_release_is_taken_back_under_its_own_policy(tmp_path: Path) -> None:
    world = World(tmp_path)
    stored(world, POLICY.model_copy(update={"owner": "them@example.com"}).model_dump(mode="json"))
    assert Bench.rescue("flights", world.settings).policy.owner == "them@example.com"


def test_a_release_of_long_ago_is_not_resumed_and_not_claimed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.first_champion()
    release = stored(world, OF_LONG_AGO)
    with pytest.raises(Refused, match=r"refused by now.*interlock abort flights, then interlock release"):
        world.release("2")
    assert world.journal.release(release.id) == release


def test_people_are_asked_as_the_release_says_whatever_else_of_its_policy_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    release = stored(world, OF_LONG_AGO | {"approval": {"approvers_min": 2}})
    answers = (waiting.Answer(True, "ann", "good"), waiting.Answer(True, "bob", "good"))
    assert not waiting.judge(world.bench(), release, also=answers[:1]).passed
    assert waiting.judge(world.bench(), release, also=answers).passed
