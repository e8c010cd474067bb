"""The lock belongs to pyproject.toml, has a hash for everything, and prefect.yaml to the code."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def locked() -> dict[str, list[Version]]:
    """Versions by package; a package can have several, for different Pythons."""
    found: dict[str, list[Version]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock_text(), flags=re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(Version(version))
    return found


def lock_text() -> str:
    return (ROOT / "requirements.lock").read_text()


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    texts = list(project["project"]["dependencies"])
    for extra in ("aws", "gcp", "llm", "postgres"):
        texts += project["project"]["optional-dependencies"][extra]
    for group in project["dependency-groups"].values():
        texts += group
    return [Requirement(text) for text in texts]


def test_the_lock_satisfies_pyproject() -> None:
    """What `make lock` would change is missing here; run it after changing a dependency."""
    versions = locked()
    wrong = [
        str(requirement)
        for requirement in wanted()
        if not any(
            version in requirement.specifier
            for version in versions.get(canonicalize_name(requirement.name), [])
        )
    ]
    assert wrong == []


def test_everything_locked_has_a_hash() -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", lock_text(), flags=re.MULTILINE)
    bare = [entry.splitlines()[0] for entry in entries if "==" in entry and "--hash=sha256:" not in entry]
    assert bare == []
    assert len(locked()) > 100


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda it: it["name"])
def test_deployments_name_flows_and_give_their_parameters(deployment: dict[str, Any]) -> None:
    entrypoint = deployment["entrypoint"]
    assert "/" not in entrypoint, "a file path loads the module a second time under another name"
    module, _, function = entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), function)
    parameters = inspect.signature(flow.fn).parameters
    required = {name for name, it in parameters.items() if it.default is inspect.Parameter.empty}
    for trigger in deployment.get("triggers", ()):
        assert required <= set(trigger["parameters"]) <= set(parameters)
    if deployment.get("schedules"):
        assert required == set()
    assert flow.name == deployment["name"]
    assert deployment["description"]
    assert "interlock" in deployment["tags"]


def test_the_crash_automation_knows_no_ending_of_our_own() -> None:
    safety = next(it for it in deployments() if it["name"] == "make-safe")
    (trigger,) = safety["triggers"]
    assert {name.rpartition(".")[2] for name in trigger["expect"]} == {
        "Crashed",
        "Failed",
        "Cancelled",
        "TimedOut",
    }


def test_the_hook_and_the_automation_speak_of_the_same_event() -> None:
    from serving.hook.events import EVENT, event_body
    from serving.hook.requests import CandidateRequest

    release = next(it for it in deployments() if it["name"] == "release")
    (trigger,) = release["triggers"]
    assert trigger["expect"] == [EVENT]
    body = event_body(CandidateRequest("flights", "m", 3, "candidate", "d"), now=0.0)
    assert body["resource"]["prefect.resource.id"].startswith(
        trigger["match"]["prefect.resource.id"].rstrip("*")
    )
    templates = yaml.safe_dump(trigger["parameters"])
    assert set(re.findall(r"event\.payload\.(\w+)", templates)) <= set(body["payload"])
