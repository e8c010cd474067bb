"""The local platform: replicas under supervisord behind HAProxy, on one machine.

What runs where is in the slot files, who answers is in the gateway's maps, and both can be read
back at any time; this class remembers nothing of its own between calls.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from configs.policy import Policy
from configs.settings import Settings
from serving.direct import DirectClient
from serving.endpoint import (
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
from serving.errors import NotHealthy, Refused
from serving.fence import check_deploy, check_retire, effective
from serving.gateway.access_log import AccessLog
from serving.gateway.limits import drain_s, forget_limits
from serving.gateway.places import access_log_path, gateway_runtime
from serving.gateway.plane import RoutePlane
from serving.gateway.render import refresh_gateway
from serving.gateway.runtime import ServerStatus
from serving.local_replicas import ReplicaProcesses
from serving.secret_files import Secret, secret_path
from serving.slots import SlotFiles, SlotRecord
from serving.supervision import Supervisor

if TYPE_CHECKING:
    from serving.llm.engine import EngineGauges

_LOGGER = logging.getLogger(__name__)
_POLL_S = 0.1
_SERVERS_UP_WAIT_S = 15.0
_COUNTS_WAIT_S = 0.5
"""Every look asks: a replica that hangs must not hold the look up."""

REPLICA_COMMAND = (sys.executable, "-m", "serving.replica")
"""Runs one replica; the path of its ReplicaSpec is appended."""


class LocalEndpoint:
    """One endpoint of the local platform; see `serving.endpoint.Endpoint`."""

    capabilities = Capabilities(
        share_step_bp=1, has_lease=True, sticky_users=True, per_request_observations=True, capture_delay_s=1.0
    )

    def __init__(
        self,
        name: str,
        policy: Policy,
        settings: Settings,
        supervisor: Supervisor,
        *,
        replica_command: tuple[str, ...] = REPLICA_COMMAND,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self._policy = policy
        self._settings = settings
        self._clock = clock
        self._slots = SlotFiles(settings)
        self._plane = RoutePlane(settings, clock=clock)
        self._runtime = gateway_runtime(settings)
        self._log = AccessLog(access_log_path(settings), name)
        self._direct = DirectClient(settings.host)
        self._turns = itertools.count()
        self._processes = ReplicaProcesses(name, policy, settings, supervisor, self._direct, replica_command)

    def deploy(self, slot: Slot, version: str, *, uri: str) -> None:
        """Start the replicas, wait until each is healthy, then let the gateway know them.

        Raises Refused for a slot with traffic and for a prompt that cannot be used, NotHealthy with the
        end of the replica's log when one does not come up (nothing of the version is left then),
        PlatformUnavailable without a gateway.
        """
        held = self._slots.read(self.name, slot)
        is_same = held is not None and (held.version, held.uri) == (version, uri)
        what_is_held = "" if held is None else version if is_same else f"{held.version} ({held.uri})"
        check_deploy(self._plane.route(self.name), slot, version, what_is_held, self._clock())
        prompt = self._processes.prompt(version, held_digest=held.prompt_digest if held and is_same else "")
        if held is not None and not is_same:
            self._empty(held)
        self._processes.stop_unused_engines()
        replicas = self._policy.replicas
        record = self._slots.reserve(
            self.name,
            slot,
            version,
            uri,
            replicas.count,
            maxconn=replicas.gateway_limit or 0,
            engine_key=self._processes.engine_key(version, uri),
            prompt_digest=prompt.digest if prompt else "",
        )
        surplus = [one for one in held.replicas if one not in record.replicas] if held and is_same else []
        try:
            self._processes.start(record)
        except NotHealthy:
            if not record.ready:
                self._empty(record)
            raise
        self._slots.write(replace(record, ready=True, machine=self._processes.machine(record)))
        refresh_gateway(self._settings, [self._policy_here()])
        self._processes.stop(surplus, self._slots, slot)
        self._processes.stop_unused_engines()
        self._await_servers(record)

    def apply(self, route: Route) -> None:
        """Write the route and its grant to every worker and read them back.

        Refuses to make a slot the default that holds another version or has no live replica.
        """
        if route.endpoint != self.name:
            raise Refused(f"asked {self.name} to apply a route of {route.endpoint}")
        self._plane.apply(route, before_new=lambda current: self._check_slots(route, current))

    def describe(self) -> EndpointState:
        """Routes from the gateway's workers, versions from the slot files, health from the gateway."""
        route = self._plane.route(self.name)
        up = {(one.backend, one.server) for one in self._servers_now() if one.is_up}
        records = {slot: self._slots.read(self.name, slot) for slot in Slot}
        return EndpointState(
            name=self.name,
            route=effective(route, self._clock()) if route else None,
            versions={slot: record.version if record else "" for slot, record in records.items()},
            replicas={
                slot: tuple(
                    Replica(
                        one.name,
                        f"{self._settings.host}:{one.port}",
                        record.ready and (self._backend(slot), one.name) in up,
                        record.machine,
                    )
                    for one in record.replicas
                )
                if record
                else ()
                for slot, record in records.items()
            },
        )

    def invoke(self, slot: Slot, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        """Ask the slot's replicas in turn, directly. Raises Refused for a slot that is not ready."""
        record = self._slots.read(self.name, slot)
        if record is None or not record.ready:
            raise Refused(f"{self.name}: asked to call {slot}, which holds no version. Next: deploy one")
        replica = record.replicas[next(self._turns) % len(record.replicas)]
        return self._direct.post(replica.port, path, body, content_type=content_type, timeout_s=timeout_s)

    def observations(
        self, cursor: str | None, *, settle_s: float = 0.0, limit: int | None = None
    ) -> Observations:
        """Finished requests from the gateway's access log."""
        part = self._log.read(cursor, limit=limit)
        if part.malformed:
            _LOGGER.warning("%s: %d lines of the access log cannot be read", self.name, part.malformed)
        in_flight: Counter[Slot] = Counter(dict.fromkeys(Slot, 0))
        for session in self._runtime.sessions():
            for slot in Slot:
                if session.backend == self._backend(slot) and session.age_s >= settle_s:
                    in_flight[slot] += 1
        frame = part.frame
        if self._policy.serving.is_llm:
            from serving.llm.measures import with_measures

            frame = with_measures(
                frame,
                self._settings.measures_dir / self.name,
                failing_ends=self._policy.serving.failing_ends,
            )
        return Observations(frame, part.cursor, dict(in_flight))

    def engines(self) -> dict[Slot, dict[str, EngineGauges | None]]:
        """The engines' gauges of each slot by replica; None of one that does not tell.

        All are asked at once: those that hang together must not hold a look up for longer than one does.
        """
        from serving.llm.engine import read_engine

        if not self._policy.serving.is_llm:
            return {}
        records = [self._slots.read(self.name, slot) for slot in Slot]
        placed = [(record.slot, one) for record in records if record for one in record.replicas]
        found: dict[Slot, dict[str, EngineGauges | None]] = {slot: {} for slot in Slot}
        with ThreadPoolExecutor(max(1, len(placed))) as threads:
            read = threads.map(partial(read_engine, self._direct), [one.port for _, one in placed])
            for (slot, replica), gauges in zip(placed, read, strict=True):
                found[slot][replica.name] = gauges
        return found

    def guard_counts(self) -> dict[Slot, dict[str, int]]:
        """What the guards of each slot's replicas did since these began, by `stage/check/done`."""
        from serving.guards.counts import add_counts, parse_counts

        found: dict[Slot, dict[str, int]] = {}
        for slot in Slot if self._policy.serving.guards.is_active else ():
            record = self._slots.read(self.name, slot)
            replies = {
                one.name: self._direct.get(one.port, "/metrics", timeout_s=_COUNTS_WAIT_S)
                for one in (record.replicas if record else ())
            }
            found[slot] = add_counts(
                {name: parse_counts(reply.body.decode(errors="replace")) for name, reply in replies.items()}
            )
        return found

    def periods(self, since: float, until: float, *, edges_ms: tuple[float, ...]) -> list[Period]:
        """Never: the access log has every request."""
        raise Refused(f"{self.name}: the gateway logs each request. Next: read observations")

    def exchanges(self, cursor: str | None, *, limit: int) -> tuple[list[Exchange], str]:
        """Exact exchanges of the default slot. A cursor stays with the slot that it began with."""
        from serving.capture.sealing import Seal
        from serving.capture.spool import read_exchanges

        if cursor is None:
            route = self._plane.route(self.name)
            if route is None:
                raise Refused(f"{self.name} has no champion yet, so there is nothing to replay")
            slot, inner = route.default, None
        else:
            word, _, inner = cursor.partition("|")
            slot = Slot(word)
        folder = self._settings.spool_dir / self.name / slot.value
        key = secret_path(self._settings, Secret.SPOOL)
        seal = Seal.from_file(key if key.exists() else None, os.environ)
        exchanges, new_inner = read_exchanges(folder, inner, limit, seal)
        return exchanges, f"{slot.value}|{new_inner}"

    def retire(self, slot: Slot) -> None:
        """Take the slot out of the gateway, wait for its last request, stop its replicas."""
        record = self._slots.read(self.name, slot)
        check_retire(self._plane.route(self.name), slot, self._clock())
        if record is not None:
            self._empty(record)

    def dismantle(self) -> None:
        """Take the whole endpoint down, its default slot too: clients get 404. A no-op where nothing is up.

        For endpoints without users (staging). The route stays behind with its generation, so that
        what comes next is newer than everything before.
        """
        forget_limits(self._settings, self.name)
        refresh_gateway(self._settings)
        for slot in Slot:
            record = self._slots.read(self.name, slot)
            if record is not None:
                self._empty(record)

    def _empty(self, record: SlotRecord) -> None:
        if record.ready:
            record = replace(record, ready=False)
            self._slots.write(record)
        refresh_gateway(self._settings)
        deadline = time.monotonic() + drain_s(self._policy)
        backend = self._backend(record.slot)
        while any(one.backend == backend for one in self._runtime.sessions()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self._processes.stop(record.replicas, self._slots, record.slot)
        self._slots.delete(self.name, record.slot)
        self._processes.stop_unused_engines()
        shutil.rmtree(self._settings.spool_dir / self.name / record.slot.value, ignore_errors=True)

    def _check_slots(self, route: Route, current: Route | None) -> None:
        """Refuse a new generation whose slots do not hold what it says."""
        wanted = {route.default: route.default_version}
        if route.other_version:
            wanted[route.other] = route.other_version
        for slot, version in wanted.items():
            record = self._slots.read(self.name, slot)
            if record is None or not record.ready or record.version != version:
                found = "nothing" if record is None else f"{record.version} (ready: {record.ready})"
                raise Refused(
                    f"{self.name}: asked for version {version} in {slot}, which holds {found}. "
                    "Next: deploy it there first"
                )
        moves = current is None or current.default is not route.default
        if moves and not any(
            one.is_up for one in self._servers_now() if one.backend == self._backend(route.default)
        ):
            raise Refused(
                f"{self.name}: asked to make {route.default} the default, but the gateway sees no live "
                f"replica there. Next: interlock status {self.name}; interlock logs"
            )

    def _await_servers(self, record: SlotRecord) -> None:
        backend = self._backend(record.slot)
        wanted = {one.name for one in record.replicas}
        deadline = time.monotonic() + _SERVERS_UP_WAIT_S
        while True:
            proven = {one.server for one in self._servers_now() if one.backend == backend and one.is_proven}
            if wanted <= proven:
                return
            if time.monotonic() > deadline:
                raise NotHealthy(
                    f"{self.name}: replicas {sorted(wanted - proven)} are healthy, but the gateway does not "
                    f"see them so after {_SERVERS_UP_WAIT_S:.0f} s. Next: interlock logs gateway"
                )
            time.sleep(_POLL_S)

    def _servers_now(self) -> list[ServerStatus]:
        current = next((worker.pid for worker in self._runtime.workers() if worker.is_current), 0)
        return self._runtime.servers().get(current, [])

    def _policy_here(self) -> Policy:
        return self._policy.model_copy(update={"endpoint": self.name})

    def _backend(self, slot: Slot) -> str:
        return f"{self.name}.{slot.value}"
