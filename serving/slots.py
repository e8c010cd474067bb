"""What the slots of local endpoints run: one JSON file a slot, and the ports it holds.

The files are the platform's memory between commands: the gateway's configuration is rendered
from them, and a repeated `deploy` finds its ports again.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.prices import LOCAL_MACHINE
from configs.settings import Settings
from serving.atomic import timed_lock, write_private
from serving.endpoint import Slot
from serving.errors import SetupError
from serving.versions import Pair

_LOCK_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class SlotReplica:
    """One serving process: its name in the supervisor and in the gateway, and its port."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """What one slot runs. The gateway sends requests to a `ready` slot only.

    `maxconn` is how many requests it gives one replica at once, 0 for the endpoint's own limit.
    `engines` are those behind the replicas, one each in the same order, where replicas are only fronts;
    `engine_key` says which engines those are: slots with the same one share them. `prompt_digest` is of
    the prompt's text that the version was placed with, `machine` what its replicas are billed as.
    """

    endpoint: str
    slot: Slot
    version: str
    uri: str
    replicas: tuple[SlotReplica, ...]
    ready: bool = False
    maxconn: int = 0
    engines: tuple[SlotReplica, ...] = ()
    engine_key: str = ""
    prompt_digest: str = ""
    machine: str = LOCAL_MACHINE


class SlotFiles:
    """The slot files of one stack."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dir = settings.slots_dir

    def read(self, endpoint: str, slot: Slot) -> SlotRecord | None:
        """One slot's record; None for an empty slot. Raises SetupError for a file that is not ours."""
        path = self._path(endpoint, slot)
        try:
            fields = json.loads(path.read_text())
            return SlotRecord(
                endpoint=str(fields["endpoint"]),
                slot=Slot(fields["slot"]),
                version=str(fields["version"]),
                uri=str(fields["uri"]),
                replicas=_replicas(fields["replicas"]),
                ready=bool(fields["ready"]),
                maxconn=int(fields.get("maxconn", 0)),
                engines=_replicas(fields.get("engines", [])),
                engine_key=str(fields.get("engine_key", "")),
                prompt_digest=str(fields.get("prompt_digest", "")),
                machine=str(fields.get("machine", LOCAL_MACHINE)),
            )
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise SetupError(
                f"{path} is not a slot file: {error!r}. Next: remove it, then deploy again"
            ) from error

    def write(self, record: SlotRecord) -> None:
        """Put a slot's record down, whole."""
        write_private(self._path(record.endpoint, record.slot), json.dumps(asdict(record), indent=1))

    def delete(self, endpoint: str, slot: Slot) -> None:
        """Empty a slot; a no-op when it is empty."""
        self._path(endpoint, slot).unlink(missing_ok=True)

    def every(self) -> list[SlotRecord]:
        """All slots that hold a version, in a stable order."""
        names = sorted(path.parent.name for path in self._dir.glob("*/*.json"))
        records = (self.read(name, slot) for name in dict.fromkeys(names) for slot in Slot)
        return [record for record in records if record is not None]

    def spec_path(self, endpoint: str, slot: Slot, replica: SlotReplica) -> Path:
        """Where a replica finds what it is told."""
        return self._dir / endpoint / slot.value / f"{replica.name}.json"

    def engine_path(self, endpoint: str, name: str) -> Path:
        """Where an engine finds what it is told. It is there as long as the engine may run."""
        return self._dir / endpoint / "engines" / f"{name}.json"

    def unused_engines(self, endpoint: str) -> list[str]:
        """Engines that may run, and that no slot's record names any more."""
        told = sorted(path.stem for path in (self._dir / endpoint / "engines").glob("*.json"))
        records = [record for slot in Slot if (record := self.read(endpoint, slot)) is not None]
        used = {one.name for record in records for one in record.engines}
        return [name for name in told if name not in used]

    def reserve(
        self,
        endpoint: str,
        slot: Slot,
        version: str,
        uri: str,
        count: int,
        *,
        maxconn: int = 0,
        engine_key: str = "",
        prompt_digest: str = "",
    ) -> SlotRecord:
        """Write down a slot with `count` replicas on ports that nobody else holds, and return it.

        A slot that holds the same version keeps its replicas with their ports, engines and prompt, and
        its readiness, as far as `count` allows. With `engine_key` each replica has an engine: the other
        slot's where that has the same key. Raises SetupError when the ports run out.
        """
        with self._lock():
            held = self.read(endpoint, slot)
            if held is not None and (held.version, held.uri) == (version, uri):
                kept = held.replicas[:count]
                record = replace(held, replicas=kept, maxconn=maxconn or held.maxconn)
            else:
                kept = ()
                record = SlotRecord(endpoint, slot, version, uri, (), maxconn=maxconn)
            if not kept:
                record = replace(record, engine_key=engine_key, prompt_digest=prompt_digest)
            engines = (record.engines or self._engines_with(endpoint, record.engine_key))[:count]
            taken = {one.port for other in self.every() for one in (*other.replicas, *other.engines)}
            missing = count - len(engines) if record.engine_key else 0
            fresh = self._free_ports(count - len(kept) + missing, taken)
            for_engines, for_replicas = fresh[:missing], fresh[missing:]
            model = Pair.of(version).model if missing else ""
            engines += tuple(SlotReplica(f"engine-{endpoint}-{model}-{port}", port) for port in for_engines)
            added = tuple(SlotReplica(f"replica-{endpoint}-{slot}-{port}", port) for port in for_replicas)
            record = replace(record, replicas=kept + added, engines=engines)
            self.write(record)
            return record

    def _engines_with(self, endpoint: str, engine_key: str) -> tuple[SlotReplica, ...]:
        """Those of a slot with this key; none for no key."""
        records = [record for slot in Slot if (record := self.read(endpoint, slot)) is not None]
        return next((one.engines for one in records if engine_key and one.engine_key == engine_key), ())

    def _free_ports(self, count: int, taken: set[int]) -> list[int]:
        low, high = self._settings.replica_port_low, self._settings.replica_port_high
        found: list[int] = []
        for port in range(low, high + 1):
            if len(found) == count:
                break
            if port not in taken and _is_free(self._settings.host, port):
                found.append(port)
        if len(found) < count:
            raise SetupError(
                f"asked for {count} free ports between {low} and {high}, found {len(found)}. "
                "Next: retire a slot, or widen INTERLOCK_REPLICA_PORT_LOW/HIGH"
            )
        return found

    @contextlib.contextmanager
    def _lock(self) -> Generator[None]:
        with timed_lock(self._dir / ".lock", wait_s=_LOCK_WAIT_S) as held:
            if not held:
                raise SetupError(f"{self._dir}/.lock is held by another process for {_LOCK_WAIT_S:.0f} s")
            yield

    def _path(self, endpoint: str, slot: Slot) -> Path:
        return self._dir / endpoint / f"{slot.value}.json"


def _replicas(listed: Iterable[Mapping[str, Any]]) -> tuple[SlotReplica, ...]:
    return tuple(SlotReplica(str(one["name"]), int(one["port"])) for one in listed)


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
