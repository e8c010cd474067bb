"""Speaks HAProxy's Runtime API: maps, statistics, sessions and reloads, on every worker.

After a reload old workers finish what they hold, so whatever must hold at once is told to each of
them. Only the master's socket reaches them all (`@!PID command`); it answers one command a
connection, and not at all while it re-reads its configuration, hence the time-outs.
"""

from __future__ import annotations

import csv
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import NotApplied, PlatformUnavailable, SetupError

_PLAIN = re.compile(r"[A-Za-z0-9._:#@/+-]+")
_MAP_VALUE = re.compile(r'found=yes.*?, value="([^"]*)"', re.DOTALL)
_ENDING_WAIT_S = 2.0
_ENDING_POLL_S = 0.01
_AGE_PARTS = re.compile(r"(\d+)([dhms])")
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


@dataclass(frozen=True, slots=True)
class Worker:
    """One HAProxy process that may still answer requests. `is_current` is False after a reload."""

    pid: int
    is_current: bool


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What one worker thinks of one server. `sessions` are requests that it answers now."""

    backend: str
    server: str
    status: str
    check: str
    sessions: int
    queued: int

    @property
    def is_up(self) -> bool:
        """Taking requests."""
        return self.status.startswith("UP")

    @property
    def is_proven(self) -> bool:
        """Taking requests, and seen healthy by a check of this worker (a fresh one assumes UP)."""
        return self.is_up and self.check.removeprefix("* ").startswith("L7OK")


@dataclass(frozen=True, slots=True)
class Session:
    """A request that is being answered, or waits, in a backend. `age_s` is in whole seconds."""

    backend: str
    age_s: int


class Runtime:
    """A client of one HAProxy's master socket. Every method raises PlatformUnavailable."""

    def __init__(self, master_socket: Path, *, timeout_s: float = 5.0) -> None:
        self._path = master_socket
        self._timeout_s = timeout_s

    def is_up(self) -> bool:
        """Whether a master answers and has a worker."""
        try:
            return bool(self.workers())
        except PlatformUnavailable:
            return False

    def workers(self) -> list[Worker]:
        """Every worker, the current one first."""
        found: list[Worker] = []
        is_current = True
        for line in self._send("show proc").splitlines():
            if line.startswith("# old workers"):
                is_current = False
            fields = line.split()
            if len(fields) > 1 and fields[0].isdigit() and fields[1] == "worker":
                found.append(Worker(int(fields[0]), is_current))
        return found

    def get_map(self, name: str, key: str, workers: Sequence[Worker] | None = None) -> dict[int, str | None]:
        """What each worker finds in a map, by pid; None where it finds nothing.

        Here and below: `workers` saves asking who they are. A list made before a map's file was
        written is too old for a command that follows it: a reload may have begun in between.
        """
        answers = self._everywhere(f"get map {_plain(name)} {_plain(key)}", workers)
        values: dict[int, str | None] = {}
        for pid, answer in answers.items():
            if "type=" not in answer:
                raise NotApplied(f"haproxy (pid {pid}) has no map {name}: it said {answer.strip()!r}")
            match = _MAP_VALUE.search(answer)
            values[pid] = match.group(1) if match else None
        return values

    def show_map(self, name: str) -> dict[str, str]:
        """Every entry of a map in the current worker."""
        entries: dict[str, str] = {}
        for line in self._ask(self._current(), f"show map {_plain(name)}").splitlines():
            fields = line.split(maxsplit=2)
            if len(fields) == 3 and fields[0].startswith("0x"):
                entries[fields[1]] = fields[2]
        return entries

    def set_map(self, name: str, key: str, value: str, workers: Sequence[Worker] | None = None) -> None:
        """Set an entry on every worker, adding it where it is new."""
        where = f"map {_plain(name)} {_plain(key)}"
        for pid, answer in self._everywhere(f"set {where} {_plain(value)}", workers).items():
            said = answer.strip()
            if said.startswith("entry not found"):
                said = self._ask(pid, f"add {where} {_plain(value)}").strip()
            _expect_silence(said, f"set {where} {value}", pid)

    def delete_map(self, name: str, key: str) -> None:
        """Delete an entry on every worker; one that is not there is no fault."""
        where = f"map {_plain(name)} {_plain(key)}"
        for pid, answer in self._everywhere(f"del {where}").items():
            said = answer.strip()
            if not said.startswith(("entry not found", "Key not found")):
                _expect_silence(said, f"del {where}", pid)

    def servers(self) -> dict[int, list[ServerStatus]]:
        """The servers of every backend, by worker."""
        statuses: dict[int, list[ServerStatus]] = {}
        for pid, answer in self._everywhere("show stat -1 4 -1").items():
            rows = csv.DictReader(answer.removeprefix("# ").splitlines())
            statuses[pid] = [
                ServerStatus(
                    backend=row["pxname"],
                    server=row["svname"],
                    status=row["status"],
                    check=row["check_status"],
                    sessions=int(row["scur"] or 0),
                    queued=int(row["qcur"] or 0),
                )
                for row in rows
            ]
        return statuses

    def sessions(self) -> list[Session]:
        """Requests in flight in all workers; connections without a request are not among them."""
        found: list[Session] = []
        for answer in self._everywhere("show sess").values():
            for line in answer.splitlines():
                fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
                backend = fields.get("be", "<NONE>")
                if "age" in fields and not backend.startswith("<"):
                    found.append(Session(backend, _age_s(fields["age"])))
        return found

    def reload(self) -> None:
        """Start a new worker on the present configuration; returns once it has taken over.

        Raises SetupError with HAProxy's own words when it refuses; the old worker then stays.
        """
        answer = self._send("reload", timeout_s=60)
        if "Success=1" not in answer:
            raise SetupError(f"haproxy refused to reload and goes on as before. It said: {answer.strip()}")

    def _current(self) -> int:
        for worker in self.workers():
            if worker.is_current:
                return worker.pid
        raise PlatformUnavailable(
            f"haproxy's master on {self._path} has no worker. Next: interlock logs gateway"
        )

    def _no_worker(self) -> PlatformUnavailable:
        return PlatformUnavailable(
            f"haproxy's master on {self._path} has no worker. Next: interlock logs gateway"
        )

    def _everywhere(self, command: str, workers: Sequence[Worker] | None = None) -> dict[int, str]:
        """Every worker's answer. One that ended meanwhile is left out: it answers no request either."""
        answers: dict[int, str] = {}
        for worker in self.workers() if workers is None else workers:
            answer = self._ask_while_alive(worker.pid, command)
            if answer is not None:
                answers[worker.pid] = answer
        if not answers:
            raise self._no_worker()
        return answers

    def _ask_while_alive(self, pid: int, command: str) -> str | None:
        """None once the worker has ended; one that is about to end refuses connections for a moment."""
        deadline = time.monotonic() + _ENDING_WAIT_S
        while True:
            try:
                return self._ask(pid, command)
            except PlatformUnavailable:
                if pid not in {left.pid for left in self.workers()}:
                    return None
                if time.monotonic() > deadline:
                    raise
                time.sleep(_ENDING_POLL_S)

    def _ask(self, pid: int, command: str) -> str:
        answer = self._send(f"@!{pid} {command}")
        if answer.startswith(("Can't find the target", "Can't connect to the target")):
            raise PlatformUnavailable(f"haproxy's worker {pid} does not answer {command!r}: {answer.strip()}")
        return answer

    def _send(self, command: str, *, timeout_s: float | None = None) -> str:
        """One command, one connection: the master reads until the half-close."""
        parts: list[bytes] = []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(timeout_s or self._timeout_s)
                connection.connect(str(self._path))
                connection.sendall(f"{command}\n".encode())
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65_536):
                    parts.append(part)
        except OSError as error:
            raise PlatformUnavailable(
                f"the gateway does not answer on {self._path} ({error}); asked: {command!r}. "
                "Next: interlock status, or interlock up"
            ) from error
        return b"".join(parts).decode("utf-8", "replace")


def _plain(word: str) -> str:
    """A word that needs no quoting in HAProxy's command line. Raises ValueError for any other."""
    if not _PLAIN.fullmatch(word):
        raise ValueError(f"{word!r} cannot be a word of a haproxy command: only letters, digits, ._:#@/+-")
    return word


def _expect_silence(said: str, command: str, pid: int) -> None:
    if said:
        raise NotApplied(f"haproxy (pid {pid}) refused {command!r}: {said}")


def _age_s(text: str) -> int:
    return sum(int(number) * _SECONDS[unit] for number, unit in _AGE_PARTS.findall(text))
