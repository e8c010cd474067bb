"""What a registry webhook asks for: a version of a model or of a prompt became somebody's candidate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from configs.loading import load_policies
from serving.hook.signature import HookRefused

CANDIDATE = "candidate"
_ALIAS_ENTITIES = {"model_version_alias": False, "prompt_alias": True}
"""Entities of alias events, and whether they are of prompts."""
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class AliasSet:
    """An alias that was set on a version of a registered model, or of a registered prompt."""

    model: str
    alias: str
    version: int
    is_prompt: bool = False


@dataclass(frozen=True, slots=True)
class CandidateRequest:
    """One endpoint is asked to release one version; 0 stands for the champion's, which stays.

    `model` is the registered name that was changed: the model's, or the prompt's.
    """

    endpoint: str
    model: str
    version: int
    alias: str
    delivery_id: str
    prompt: int = 0


def parse(body: bytes) -> AliasSet | None:
    """The alias change in a webhook's body; None for any other kind of event.

    Raises HookRefused (400) for a body that is not one of MLflow's.
    """
    try:
        message: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HookRefused(400, "the body is not JSON") from error
    content = _object(message, "the body")
    entity = content.get("entity")
    if entity not in _ALIAS_ENTITIES or content.get("action") != "created":
        return None
    data = _object(content.get("data"), "data")
    model, alias, version = data.get("name"), data.get("alias"), data.get("version")
    if not isinstance(model, str) or not isinstance(alias, str):
        raise HookRefused(400, "data.name and data.alias must be text")
    if (
        isinstance(version, bool)
        or not isinstance(version, str | int)
        or not _VERSION.fullmatch(str(version))
    ):
        raise HookRefused(400, "data.version must be a version number")
    return AliasSet(model, alias, int(version), is_prompt=_ALIAS_ENTITIES[entity])


def candidate_requests(
    change: AliasSet, delivery_id: str, endpoints_of: Mapping[Watched, tuple[str, ...]]
) -> tuple[CandidateRequest, ...]:
    """One request for each endpoint whose policy names the model or prompt; none for other aliases."""
    if change.alias != CANDIDATE:
        return ()
    version, prompt = (0, change.version) if change.is_prompt else (change.version, 0)
    return tuple(
        CandidateRequest(endpoint, change.model, version, change.alias, delivery_id, prompt)
        for endpoint in endpoints_of.get((change.model, change.is_prompt), ())
    )


Watched: TypeAlias = tuple[str, bool]
"""A registered name, and whether it is a prompt's: a model may have the same name."""


class WatchedModels:
    """Which endpoints' policies name which model or prompt, as the policy folder says now.

    Files are read again only when one was added, removed or changed. A broken policy is left out
    and reported once: it must not keep the other endpoints from releasing.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder = folder
        self._report = report
        self._stamp: tuple[tuple[str, int, int], ...] | None = None
        self._endpoints_of: dict[Watched, tuple[str, ...]] = {}

    def endpoints_of(self) -> Mapping[Watched, tuple[str, ...]]:
        """Model or prompt to the endpoints that it is released on."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            policies, errors = load_policies(self._folder)
            endpoints_of: dict[Watched, tuple[str, ...]] = {}
            for endpoint, policy in sorted(policies.items()):
                prompts = [(policy.prompt.name, True)] if policy.prompt else []
                for watched in ((policy.model, False), *prompts):
                    endpoints_of[watched] = (*endpoints_of.get(watched, ()), endpoint)
            self._endpoints_of, self._stamp = endpoints_of, stamp
            for error in errors:
                self._report(str(error))
        return self._endpoints_of

    def _read_stamp(self) -> tuple[tuple[str, int, int], ...]:
        stats: list[tuple[str, int, int]] = []
        for path in sorted(self._folder.glob("*.yaml")):
            try:
                status = path.stat()
            except OSError:
                continue
            stats.append((path.name, status.st_mtime_ns, status.st_size))
        return tuple(stats)


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise HookRefused(400, f"{what} is not a JSON object")
    return cast("Mapping[str, Any]", value)
