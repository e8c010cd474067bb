"""What a registry webhook asks for: a model version became somebody's candidate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from configs.loading import load_policies
from serving.hook.signature import HookRefused

CANDIDATE = "candidate"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class AliasSet:
    """An alias that was set on a version of a registered model."""

    model: str
    alias: str
    version: int


@dataclass(frozen=True, slots=True)
class CandidateRequest:
    """One endpoint is asked to release one version."""

    endpoint: str
    model: str
    version: int
    alias: str
    delivery_id: str


def parse(body: bytes) -> AliasSet | None:
    """The alias change in a webhook's body; None for any other kind of event.

    Raises HookRefused (400) for a body that is not one of MLflow's.
    """
    try:
        message: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HookRefused(400, "the body is not JSON") from error
    content = _object(message, "the body")
    if content.get("entity") != "model_version_alias" or content.get("action") != "created":
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
    return AliasSet(model, alias, int(version))


def candidate_requests(
    change: AliasSet, delivery_id: str, endpoints_of: Mapping[str, tuple[str, ...]]
) -> tuple[CandidateRequest, ...]:
    """One request for each endpoint whose policy names the model; none for other aliases and models."""
    if change.alias != CANDIDATE:
        return ()
    return tuple(
        CandidateRequest(endpoint, change.model, change.version, change.alias, delivery_id)
        for endpoint in endpoints_of.get(change.model, ())
    )


class WatchedModels:
    """Which endpoints' policies name which model, as the policy folder says now.

    Files are read again only when one was added, removed or changed. A broken policy is left out
    and reported once: it must not keep the other endpoints from releasing.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder = folder
        self._report = report
        self._stamp: tuple[tuple[str, int, int], ...] | None = None
        self._endpoints_of: dict[str, tuple[str, ...]] = {}

    def endpoints_of(self) -> Mapping[str, tuple[str, ...]]:
        """Model name to the endpoints that it is released on."""
        stamp = self._read_stamp()
        if stamp != self._stamp:
            policies, errors = load_policies(self._folder)
            endpoints_of: dict[str, tuple[str, ...]] = {}
            for endpoint, policy in sorted(policies.items()):
                endpoints_of[policy.model] = (*endpoints_of.get(policy.model, ()), endpoint)
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
