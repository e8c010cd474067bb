"""What the journal remembers: the rows of its tables as values, and the states they can be in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serving.endpoint import Route, Slot


class ReleaseState(StrEnum):
    """Where a release stands. Up to HELD it can be run again; those below are final.

    WAITING is for people: its flow run is suspended until somebody answers, and no process has it.
    """

    RUNNING = "RUNNING"
    WAITING = "WAITING"
    INTERRUPTED = "INTERRUPTED"
    HELD = "HELD"
    PROMOTED = "PROMOTED"
    REJECTED = "REJECTED"
    ABORTED = "ABORTED"
    ROLLED_BACK = "ROLLED_BACK"

    @property
    def final(self) -> bool:
        """Whether the release is over for good."""
        return self not in _OPEN


_OPEN = (ReleaseState.RUNNING, ReleaseState.WAITING, ReleaseState.INTERRUPTED, ReleaseState.HELD)


class Stage(StrEnum):
    """The stages of a release, in their order."""

    EVALUATE = "evaluate"
    STAGE = "stage"
    SHADOW = "shadow"
    APPROVE = "approve"
    CANARY = "canary"
    PROMOTE = "promote"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """One endpoint as the journal has it.

    `intent` is an unfinished change (`kind` promote or rollback, and what it needs to be
    finished), None when all effects are done. `keep_until` is when the previous champion in the
    other slot may be retired, also while a rollback starts it there (seconds since the epoch).
    """

    name: str
    generation: int
    default_slot: str
    blue_version: str
    green_version: str
    salt: str
    share_bp: int
    until: float
    intent: Mapping[str, Any] | None
    release_id: str
    keep_until: float
    updated_at: float

    @property
    def default(self) -> Slot:
        """The slot that answers what no grant diverts."""
        return Slot(self.default_slot)

    def version_in(self, slot: Slot) -> str:
        """The version in a slot, "" when it is empty."""
        return self.blue_version if slot is Slot.BLUE else self.green_version

    @property
    def champion(self) -> str:
        """The version in the default slot."""
        return self.version_in(self.default)

    @property
    def other_version(self) -> str:
        """The version in the other slot: a candidate, or the previous champion kept warm."""
        return self.version_in(self.default.sibling)

    @property
    def route(self) -> Route:
        """What the platform must do."""
        return Route(
            endpoint=self.name,
            generation=self.generation,
            default=self.default,
            default_version=self.champion,
            other_version=self.other_version,
            salt=self.salt,
            share_bp=self.share_bp,
            until=self.until,
        )


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """One attempt to bring one version to production.

    `champion` is the version it started against ("" for an endpoint's first), `request` what a
    person asked of it ("", "pause" or "abort"), `policy` what it began with and keeps, `verdicts`
    the stored verdict of every finished stage, `progress` the newest numbers for humans. Times are
    seconds since the epoch.
    """

    id: str
    endpoint: str
    version: str
    champion: str
    state: ReleaseState
    stage: Stage
    reason: str
    request: str
    owner: str
    owner_until: float
    flow_run_id: str
    mlflow_run_id: str
    mlflow_url: str
    started_at: float
    ended_at: float | None
    decided_at: float | None
    decided_stage: str
    policy: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LookRow:
    """One look: what was read (between two cursors), when, and its sufficient statistics."""

    release_id: str
    stage: str
    number: int
    time: float
    cursor_from: str
    cursor_to: str
    stats: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StateRow:
    """What a process that never ends (the watch) remembers from one run to the next.

    `number` counts its steps: whoever stores step n + 1 must have read step n.
    """

    endpoint: str
    kind: str
    number: int
    time: float
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One line of the trail."""

    time: float
    endpoint: str
    release_id: str
    who: str
    what: str
    details: Mapping[str, Any]
