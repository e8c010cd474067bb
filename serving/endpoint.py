"""The seam between releases and platforms: the `Endpoint` protocol and its value types.

An endpoint is the named place that clients call. It has two slots, blue and green; one is the
default (the champion's), the other is free or holds the candidate. Every verb can be repeated
with the same outcome and is read back after it wrote. Callers decide; a platform only moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from configs.measures import MEASURES
from configs.prices import LOCAL_MACHINE

if TYPE_CHECKING:
    import pandas as pd

SHARE_SCALE = 10_000
"""Shares travel as integers in basis points: 10,000 is all traffic."""


class Slot(StrEnum):
    """The two places that an endpoint has for a version."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def sibling(self) -> Slot:
        """The other one."""
        return Slot.GREEN if self is Slot.BLUE else Slot.BLUE


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers an endpoint's requests, completely described.

    `share_bp` of the buckets goes to the sibling of `default` until `until` (seconds since the
    epoch), everything else to `default`. `generation` fences: a platform refuses a grant of a
    generation that is not its current one. `salt` decides which users make up a share.
    Versions are registry versions as text, "" for an empty slot.
    """

    endpoint: str
    generation: int
    default: Slot
    default_version: str
    other_version: str = ""
    salt: str = "0"
    share_bp: int = 0
    until: float = 0.0

    @property
    def other(self) -> Slot:
        """The slot that is not the default."""
        return self.default.sibling


@dataclass(frozen=True, slots=True)
class Replica:
    """One serving process of a slot. `machine` is the kind of machine that it is billed as."""

    name: str
    address: str
    healthy: bool
    machine: str = LOCAL_MACHINE


@dataclass(frozen=True, slots=True)
class EndpointState:
    """What a platform reports of an endpoint: read, not remembered.

    `route` is None while the endpoint is unknown to the platform. Its share is the one the
    data plane would apply to a request now, so 0 after a lease ran out.
    """

    name: str
    route: Route | None
    versions: Mapping[Slot, str] = field(default_factory=dict)
    replicas: Mapping[Slot, tuple[Replica, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a platform can do; flows ask this instead of the platform's name.

    `share_step_bp` is the finest step of a share. Without `has_lease` a share stays until somebody
    takes it back (the guard flow does). Without `sticky_users` a user's requests are split one by
    one. Where `per_request_observations` is False, only counts of whole periods exist
    (`Endpoint.periods`), each `observation_period_s` long and complete `observation_delay_s` after
    its end; `capture_delay_s` is how late an exchange may be. Times in seconds.
    """

    share_step_bp: int
    has_lease: bool
    sticky_users: bool
    per_request_observations: bool
    capture_delay_s: float
    observation_period_s: float = 0.0
    observation_delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Observations:
    """Finished requests since a cursor.

    `frame` has one row a request, in the order of completion, with the columns of
    `OBSERVATION_COLUMNS`, and any of `OPTIONAL_COLUMNS`. `cursor` is where to read on; it is opaque,
    can be stored, and reading from the same two cursors again gives the same rows. `in_flight`
    counts, per slot, requests that have run for longer than the `settle_s` that was asked for.
    """

    frame: pd.DataFrame
    cursor: str
    in_flight: Mapping[Slot, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Period:
    """What one version answered in one whole period of the platform's metrics.

    `start` and `end` are seconds since the epoch. `counts[i]` requests took at most `edges_ms[i]`
    (and more than the edge before); the last of the `len(edges_ms) + 1` counts took longer than
    every edge. Direct calls may be among them: platforms that only count cannot tell them apart.
    """

    slot: Slot
    version: str
    start: float
    end: float
    requests: int
    failed: int
    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]


REFUSALS = frozenset({400, 415, 422})
"""Statuses by which a version says that it cannot read a request.

A version that refuses what the other takes breaks clients, so these count as failures of the version
that said them; a client's honest mistakes hit both versions alike.
"""

TOO_BUSY = 429
"""A version's own limit, its provider's say: what the gateway's limits refuse is assigned to no version."""

FAULTS = REFUSALS | {TOO_BUSY}
"""Statuses below 500 that are failures of the version that said them."""

OBSERVATION_COLUMNS = {
    "request_id": "str: the gateway's own id",
    "time": "float64: arrival, seconds since the epoch",
    "user": "str: HMAC of tenant and user, '' where the request named none",
    "tenant": "str",
    "slot": "str: the slot that the request was ASSIGNED to, whoever answered",
    "version": "str: the assigned version",
    "generation": "int64",
    "share": "float64: effective share at assignment, fraction in [0, 1]; 0 after a lease ran out",
    "status": "int64: HTTP status that the client got; 0 if it went away or nothing came",
    "failed": "bool: an error of the assigned version: 5xx, no answer, one that broke off, retried, answered "
    "by the other slot, or a refusal (400, 415, 422, 429) by the version itself, counted for both alike",
    "service_ms": "float64: time in the replica, without the gateway's queue",
    "total_ms": "float64: what the client waited for",
}

OPTIONAL_COLUMNS = {
    **{name: f"float64: {meaning}; NaN where it is not known" for name, meaning in MEASURES.items()},
    "cut_short": "float64: 1 where the answer ended because its tokens were used up, else 0; NaN unknown",
    "stratum": "str: requests that are alike, such as a bin of prompt lengths; thresholds may depend on it",
    "quality": "float64: score of the answer by its label in [0, 1]; NaN while there is no label",
}
"""What a platform may report besides; consumers take an absent column for one of unknowns."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of one slot, asked directly. `status` 0 means that nothing came within the time."""

    status: int
    body: bytes
    elapsed_ms: float
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Exchange:
    """One live request with the champion's answer, exact, from the short-lived spool."""

    request_id: str
    time: float
    version: str
    path: str
    content_type: str
    request: bytes
    status: int
    response: bytes
    service_ms: float


class Endpoint(Protocol):
    """One named endpoint on one platform. All verbs raise `serving.errors.ServingError`."""

    name: str
    capabilities: Capabilities

    def deploy(self, slot: Slot, version: str, *, uri: str) -> None:
        """Put a version into a slot at zero share and return once it is healthy and warm.

        Repeating it with the same version is a no-op. Refuses a slot that is the default, unless
        the endpoint has never served (its first champion). `uri` is `models:/name/version`.
        """
        ...

    def apply(self, route: Route) -> None:
        """Make traffic follow `route`, read it back, and raise `NotApplied` where they differ.

        A new generation voids every grant of older ones. A grant for a generation that is not
        the platform's current one raises `Fenced` and changes nothing.
        """
        ...

    def describe(self) -> EndpointState:
        """What the platform says now."""
        ...

    def invoke(self, slot: Slot, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        """Ask one slot directly, past the split. Model faults are replies, not exceptions."""
        ...

    def observations(
        self, cursor: str | None, *, settle_s: float = 0.0, limit: int | None = None
    ) -> Observations:
        """Finished requests since `cursor`; None starts at now (an empty frame and a cursor).

        Raises `Refused` where the platform only counts (`capabilities.per_request_observations`).
        With `limit` it stops soon after so many rows; the cursor then stands before the rest.
        """
        ...

    def periods(self, since: float, until: float, *, edges_ms: tuple[float, ...]) -> list[Period]:
        """Counts of the whole periods within [since, until], oldest first; periods without a request are
        left out.

        `edges_ms` are wished for; a platform with bins of its own answers with those. Raises `Refused`
        where `observations` has every single request.
        """
        ...

    def exchanges(self, cursor: str | None, *, limit: int) -> tuple[list[Exchange], str]:
        """Exact requests since `cursor` from the spool, oldest first; None starts at now."""
        ...

    def retire(self, slot: Slot) -> None:
        """Stop a slot's replicas once they are drained. Refuses the default slot. No-op when empty."""
        ...
