"""What the slots of local endpoints run: one JSON file a slot, and the ports it holds.

The files are the platform's memory between commands: the gateway's configuration is rendered
from them, and a repeated `deploy` finds its ports again.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from configs.settings import Settings
from serving.atomic import timed_lock, write_private
from serving.endpoint import Slot
from serving.errors import SetupError

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
    """

    endpoint: str
    slot: Slot
    version: str
    uri: str
    replicas: tuple[SlotReplica, ...]
    ready: bool = False
    maxconn: int = 0


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
                replicas=tuple(SlotReplica(str(one["name"]), int(one["port"])) for one in fields["replicas"]),
                ready=bool(fields["ready"]),
                maxconn=int(fields.get("maxconn", 0)),
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

    def reserve(
        self, endpoint: str, slot: Slot, version: str, uri: str, count: int, *, maxconn: int = 0
    ) -> SlotRecord:
        """Write down a slot with `count` replicas on ports that nobody else holds, and return it.

        A slot that holds the same version keeps its replicas, their ports and its readiness as
        far as `count` allows. Raises SetupError when the ports run out.
        """
        with self._lock():
            held = self.read(endpoint, slot)
            if held is not None and (held.version, held.uri) == (version, uri):
                kept = held.replicas[:count]
                record = replace(held, replicas=kept, maxconn=maxconn or held.maxconn)
            else:
                kept = ()
                record = SlotRecord(endpoint, slot, version, uri, (), maxconn=maxconn)
            taken = {one.port for other in self.every() for one in other.replicas}
            fresh = self._free_ports(count - len(kept), taken)
            added = tuple(SlotReplica(f"replica-{endpoint}-{slot}-{port}", port) for port in fresh)
            record = replace(record, replicas=kept + added)
            self.write(record)
            return record

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


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
