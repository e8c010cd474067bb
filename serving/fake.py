"""An endpoint in memory, for tests of everything that works on endpoints.

It passes the same contract suite as the real platforms. Traffic is sent by calling `send`, time is
the clock that it was given, and what a version answers is a function of the request.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.buckets import bucket_of
from serving.endpoint import (
    FAULTS,
    OBSERVATION_COLUMNS,
    SHARE_SCALE,
    Capabilities,
    EndpointState,
    Exchange,
    Observations,
    Period,
    Replica,
    Reply,
    Route,
    Slot,
)
from serving.errors import NotHealthy, Refused, ServingError
from serving.fence import check_change, check_deploy, check_retire, effective

Behaviour = Callable[[bytes], Reply]
"""What a version answers to a body. `elapsed_ms` of the reply is its service time."""


@dataclass(frozen=True, slots=True)
class _Held:
    version: str
    uri: str


def answers_ok(_: bytes) -> Reply:
    """The behaviour of a version that nothing was said about: 200 within a millisecond."""
    return Reply(200, b'{"predictions":[0]}', 1.0)


class FakeEndpoint:
    """One endpoint in memory; see `serving.endpoint.Endpoint`.

    `behave(version, behaviour)` says what a version answers, `break_start(version)` that it never
    becomes healthy, `sicken(version)` that it no longer is, `fail_next(verb, error)` makes one verb
    raise once, before it does anything. `answered_by` is the version of the newest live request.
    """

    capabilities = Capabilities(
        share_step_bp=1, has_lease=True, sticky_users=True, per_request_observations=True, capture_delay_s=0.0
    )

    def __init__(self, name: str, *, clock: Callable[[], float] = time.time) -> None:
        self.name = name
        self._clock = clock
        self._route: Route | None = None
        self._held: dict[Slot, _Held] = {}
        self._behaviours: dict[str, Behaviour] = {}
        self._broken: set[str] = set()
        self._sick: set[str] = set()
        self._failures: dict[str, list[ServingError]] = {}
        self._rows: list[dict[str, object]] = []
        self._exchanges: list[Exchange] = []
        self.calls: list[str] = []
        self.answered_by = ""

    def behave(self, version: str, behaviour: Behaviour) -> None:
        """Say what a version answers from now on."""
        self._behaviours[version] = behaviour

    def break_start(self, version: str) -> None:
        """Let this version never become healthy."""
        self._broken.add(version)

    def sicken(self, version: str) -> None:
        """Let the platform see every replica of this version as down."""
        self._sick.add(version)

    def fail_next(self, verb: str, error: ServingError) -> None:
        """Let the next call of this verb raise, with nothing done."""
        self._failures.setdefault(verb, []).append(error)

    def send(
        self, body: bytes, *, user: str = "", tenant: str = "tenant", path: str = "/invocations"
    ) -> Reply:
        """One live request through the split. Raises Refused while nothing serves."""
        if self._route is None:
            raise Refused(f"{self.name} serves nothing")
        now = self._clock()
        route = self._effective(self._route)
        request_id = f"request-{len(self._rows)}"
        in_share = bucket_of(route.salt, tenant, user or request_id) < route.share_bp
        slot = route.other if in_share else route.default
        version = route.other_version if in_share else route.default_version
        self.answered_by = version
        reply = self._answer(version, body)
        self._rows.append(
            {
                "request_id": request_id,
                "time": now,
                "user": f"hmac:{tenant}:{user}" if user else "",
                "tenant": tenant,
                "slot": slot.value,
                "version": version,
                "generation": route.generation,
                "share": route.share_bp / SHARE_SCALE,
                "status": reply.status,
                "failed": reply.status >= 500 or reply.status == 0 or reply.status in FAULTS,
                "service_ms": reply.elapsed_ms,
                "total_ms": reply.elapsed_ms,
            }
        )
        if slot is route.default:
            self._exchanges.append(
                Exchange(
                    request_id=request_id,
                    time=now,
                    version=version,
                    path=path,
                    content_type="application/json",
                    request=body,
                    status=reply.status,
                    response=reply.body,
                    service_ms=reply.elapsed_ms,
                )
            )
        return reply

    def deploy(self, slot: Slot, version: str, *, uri: str) -> None:
        """Hold the version in the slot."""
        self._begin("deploy")
        held = self._held.get(slot)
        check_deploy(self._route, slot, version, held.version if held else "", self._clock())
        if version in self._broken:
            self._held.pop(slot, None)
            raise NotHealthy(f"{self.name} version {version} in {slot} does not become healthy")
        self._held[slot] = _Held(version, uri)

    def apply(self, route: Route) -> None:
        """Follow the route, as far as the fences allow."""
        self._begin("apply")
        if route.endpoint != self.name:
            raise Refused(f"asked {self.name} to apply a route of {route.endpoint}")
        check_change(self._route, route, self._clock())
        if self._route is None or route.generation > self._route.generation:
            self._check_slots(route)
        self._route = route if route.share_bp else effective(route, self._clock())

    def describe(self) -> EndpointState:
        """What is held, and the route as it works now."""
        self._begin("describe")
        return EndpointState(
            name=self.name,
            route=self._effective(self._route) if self._route else None,
            versions={slot: self._held[slot].version if slot in self._held else "" for slot in Slot},
            replicas={
                slot: (
                    Replica(
                        f"{self.name}-{slot}-0", "memory", healthy=self._held[slot].version not in self._sick
                    ),
                )
                if slot in self._held
                else ()
                for slot in Slot
            },
        )

    def invoke(self, slot: Slot, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        """Ask the slot's version. An answer slower than the time is no answer."""
        self._begin("invoke")
        held = self._held.get(slot)
        if held is None:
            raise Refused(f"{self.name}: asked to call {slot}, which holds no version. Next: deploy one")
        reply = self._answer(held.version, body)
        return reply if reply.elapsed_ms <= timeout_s * 1000 else Reply(0, b"", timeout_s * 1000)

    def observations(
        self, cursor: str | None, *, settle_s: float = 0.0, limit: int | None = None
    ) -> Observations:
        """What `send` noted; nothing is ever in flight."""
        import pandas as pd

        self._begin("observations")
        start = len(self._rows) if cursor is None else _position(cursor)
        end = len(self._rows) if limit is None else min(len(self._rows), start + limit)
        frame = pd.DataFrame(self._rows[start:end], columns=pd.Index(OBSERVATION_COLUMNS))
        kinds = {name: kind.split(":")[0] for name, kind in OBSERVATION_COLUMNS.items()}
        frame = frame.astype({name: "object" if kind == "str" else kind for name, kind in kinds.items()})
        return Observations(frame, str(end), dict.fromkeys(Slot, 0))

    def periods(self, since: float, until: float, *, edges_ms: tuple[float, ...]) -> list[Period]:
        """Never: each request is known."""
        raise Refused(f"{self.name}: each request is known. Next: read observations")

    def exchanges(self, cursor: str | None, *, limit: int) -> tuple[list[Exchange], str]:
        """What the default slot answered."""
        self._begin("exchanges")
        start = len(self._exchanges) if cursor is None else _position(cursor)
        found = self._exchanges[start : start + limit]
        return found, str(start + len(found))

    def retire(self, slot: Slot) -> None:
        """Empty the slot."""
        self._begin("retire")
        check_retire(self._route, slot, self._clock())
        self._held.pop(slot, None)

    def dismantle(self) -> None:
        """Hold nothing; the route stays with its generation."""
        self._begin("dismantle")
        self._held.clear()

    def _effective(self, route: Route) -> Route:
        """The route as a request meets it now."""
        return effective(route, self._clock())

    def _begin(self, verb: str) -> None:
        self.calls.append(verb)
        failures = self._failures.get(verb)
        if failures:
            raise failures.pop(0)

    def _answer(self, version: str, body: bytes) -> Reply:
        return self._behaviours.get(version, answers_ok)(body)

    def _check_slots(self, route: Route) -> None:
        wanted = {route.default: route.default_version}
        if route.other_version:
            wanted[route.other] = route.other_version
        for slot, version in wanted.items():
            held = self._held.get(slot)
            if held is None or held.version != version:
                found = held.version if held else "nothing"
                raise Refused(
                    f"{self.name}: asked for version {version} in {slot}, which holds {found}. "
                    "Next: deploy it there first"
                )


class FakeMetered(FakeEndpoint):
    """One like the managed platforms: no lease, whole percents, counts by the minute, each a while late.

    Users are not sticky: every request draws its own bucket.
    """

    capabilities = Capabilities(
        share_step_bp=100,
        has_lease=False,
        sticky_users=False,
        per_request_observations=False,
        capture_delay_s=0.0,
        observation_period_s=60.0,
        observation_delay_s=120.0,
    )

    def send(
        self, body: bytes, *, user: str = "", tenant: str = "tenant", path: str = "/invocations"
    ) -> Reply:
        """One live request; whose it is makes no difference."""
        return super().send(body, user="", tenant=tenant, path=path)

    def apply(self, route: Route) -> None:
        """Follow the route. The share is a whole percent."""
        if route.share_bp % self.capabilities.share_step_bp:
            raise Refused(f"{self.name}: a share is a whole percent here, not {route.share_bp} bp")
        super().apply(route)

    def observations(
        self, cursor: str | None, *, settle_s: float = 0.0, limit: int | None = None
    ) -> Observations:
        """Never: there are only counts."""
        raise Refused(f"{self.name}: requests are only counted. Next: read periods")

    def periods(self, since: float, until: float, *, edges_ms: tuple[float, ...]) -> list[Period]:
        """Counts of whole minutes that are old enough to be complete."""
        self._begin("periods")
        length = self.capabilities.observation_period_s
        until = min(until, self._clock() - self.capabilities.observation_delay_s)
        found: dict[tuple[float, str, str], list[dict[str, object]]] = {}
        for row in self._rows:
            start = float(str(row["time"])) // length * length
            if since <= start and start + length <= until:
                found.setdefault((start, str(row["slot"]), str(row["version"])), []).append(row)
        return [
            _period(Slot(slot), version, start, start + length, rows, edges_ms)
            for (start, slot, version), rows in sorted(found.items())
        ]

    def _effective(self, route: Route) -> Route:
        return route


def _period(
    slot: Slot,
    version: str,
    start: float,
    end: float,
    rows: list[dict[str, object]],
    edges_ms: tuple[float, ...],
) -> Period:
    counts = [0] * (len(edges_ms) + 1)
    for row in rows:
        counts[bisect.bisect_left(edges_ms, float(str(row["service_ms"])))] += 1
    failed = sum(bool(row["failed"]) for row in rows)
    return Period(slot, version, start, end, len(rows), failed, edges_ms, tuple(counts))


def _position(cursor: str) -> int:
    try:
        return int(cursor)
    except ValueError as error:
        raise Refused(f"{cursor!r} is not a cursor of this endpoint. Next: start without one") from error
