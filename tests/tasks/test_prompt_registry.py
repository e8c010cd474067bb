"""Pairs of model and prompt in the registry: aliases on both, blame on the part that changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.settings import Settings
from serving.errors import Refused
from tasks.prompt_registry import PairRegistry, subject
from tasks.registry import CANDIDATE, CHAMPION, PREVIOUS, Registry


class Mlflow:
    """The part of MLflow's REST API that the registry speaks, with its semantics."""

    url = "http://mlflow.example"

    def __init__(self) -> None:
        self.aliases: dict[str, dict[str, str]] = {"bot": {}, "support": {}}
        self.tags: dict[tuple[str, str], dict[str, str]] = {}
        self.versions = {("bot", "3"), ("bot", "4"), ("support", "1"), ("support", "2")}

    def call(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
        if path.startswith("/registered-models/get"):
            aliases = self.aliases[path.rpartition("=")[2]]
            listed = [{"alias": alias, "version": version} for alias, version in aliases.items()]
            return {"registered_model": {"aliases": listed}}
        if path.startswith("/model-versions/get"):
            name, version = (part.partition("=")[2] for part in path.partition("?")[2].split("&"))
            found = {"model_version": {"version": version, "run_id": "r"}}
            return found if (name, version) in self.versions else None
        if path == "/registered-models/alias" and method == "POST":
            self.aliases[body["name"]][body["alias"]] = body["version"]
        elif path == "/registered-models/alias":
            del self.aliases[body["name"]][body["alias"]]
        elif path == "/model-versions/set-tag":
            self.tags.setdefault((body["name"], body["version"]), {})[body["key"]] = body["value"]
        return None


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    made = Mlflow()
    monkeypatch.setattr("tasks.registry.mlflow_api", lambda _settings: made)
    return made


@pytest.fixture
def pairs(mlflow: Mlflow, tmp_path: Path) -> PairRegistry:
    registry = PairRegistry(Settings(state_dir=tmp_path), "support")
    registry.point("bot", CHAMPION, "3+p1")
    return registry


def test_an_alias_of_a_pair_is_an_alias_of_both(pairs: PairRegistry, mlflow: Mlflow) -> None:
    assert mlflow.aliases == {"bot": {CHAMPION: "3"}, "support": {CHAMPION: "1"}}
    assert pairs.aliased("bot", CHAMPION) == "3+p1"
    assert pairs.version("bot", "3+p1").uri == "models:/bot/3"
    with pytest.raises(Refused, match="support has no version 9"):
        pairs.version("bot", "3+p9")


def test_a_candidate_on_one_part_keeps_the_other(pairs: PairRegistry, mlflow: Mlflow) -> None:
    assert pairs.aliased("bot", CANDIDATE) == ""
    mlflow.aliases["support"][CANDIDATE] = "2"
    assert pairs.aliased("bot", CANDIDATE) == "3+p2"
    pairs.unpoint("bot", CANDIDATE, "3+p1")
    assert mlflow.aliases["support"][CANDIDATE] == "2", "somebody's newer choice stays"
    pairs.unpoint("bot", CANDIDATE, "3+p2")
    assert pairs.aliased("bot", CANDIDATE) == ""
    mlflow.aliases["bot"][CANDIDATE] = "4"
    assert pairs.aliased("bot", CANDIDATE) == "4+p1"


def test_a_bad_prompt_is_no_stain_on_its_model(pairs: PairRegistry, mlflow: Mlflow) -> None:
    pairs.tag("bot", "3+p2", {"outcome": "rejected"})
    assert mlflow.tags == {("support", "2"): {"outcome": "rejected"}}
    mlflow.tags.clear()
    pairs.tag("bot", "4+p1", {"outcome": "rejected"})
    assert mlflow.tags == {("bot", "4"): {"outcome": "rejected"}}


def test_a_promoted_part_is_tagged_after_the_aliases_moved(pairs: PairRegistry, mlflow: Mlflow) -> None:
    pairs.point("bot", PREVIOUS, "3+p1")
    pairs.point("bot", CHAMPION, "3+p2")
    pairs.tag("bot", "3+p2", {"outcome": "promoted"})
    assert mlflow.tags == {("support", "2"): {"outcome": "promoted"}}
    mlflow.tags.clear()
    pairs.tag("bot", "4+p1", {"outcome": "rejected"})
    assert set(mlflow.tags) == {("bot", "4"), ("support", "1")}, "of a pair both parts are to blame"


@pytest.mark.parametrize(
    ("asked", "champion", "whole"),
    [
        ("p2", "3+p1", "3+p2"),
        ("4", "3+p1", "4+p1"),
        ("4+p2", "3+p1", "4+p2"),
        ("4", "", "4+p1"),
        ("p2", "3", "3+p2"),
    ],
)
def test_what_was_not_asked_for_stays(pairs: PairRegistry, asked: str, champion: str, whole: str) -> None:
    assert subject(pairs, model="bot", prompt="support", asked=asked, champion=champion) == whole


def test_a_part_that_nothing_names_is_refused(pairs: PairRegistry, mlflow: Mlflow) -> None:
    mlflow.aliases["support"].clear()
    with pytest.raises(Refused, match="leaves the prompt support open"):
        subject(pairs, model="bot", prompt="support", asked="4", champion="")
    mlflow.aliases["support"][CANDIDATE] = "2"
    assert subject(pairs, model="bot", prompt="support", asked="4", champion="") == "4+p2"


def test_a_policy_without_prompts_refuses_one(pairs: PairRegistry, tmp_path: Path) -> None:
    plain = Registry(Settings(state_dir=tmp_path))
    with pytest.raises(Refused, match="the policy has none"):
        subject(plain, model="bot", prompt=None, asked="3+p2", champion="3")
    assert subject(plain, model="bot", prompt=None, asked="4", champion="3") == "4"
