"""The gateway's maps: their values, their files, and the order in which both change.

`route.map`: endpoint -> default:other:generation:salt:default version:other version
`grant.map`: endpoint#generation -> share in basis points:end:when it was written (seconds since the epoch)

The file is always written before the command, because a reload or a restart reads the file.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from serving.atomic import timed_lock, write_private
from serving.endpoint import Route, Slot
from serving.errors import NotApplied, Refused

ROUTE_MAP = "maps/route.map"
GRANT_MAP = "maps/grant.map"
KEYS_MAP = "maps/keys.map"
PATHS_MAP = "maps/paths.map"
TARGETS_MAP = "maps/targets.map"
"""Names as HAProxy knows them: relative to its working folder."""

CLOCK_SLACK_S = 1
"""The gateway reads its clock once for all that came together, so a grant may seem this new to it."""

_WORD = re.compile(r"[A-Za-z0-9._+-]{0,64}")
_LOCK_WAIT_S = 1.0
_HELD_S_MAX = 0.5


@dataclass(frozen=True, slots=True)
class Grant:
    """A share of the buckets until a moment, and when it was written (whole seconds since the epoch).

    A grant from the future is void: the clock was set back, and the lease would last that much longer.
    """

    share_bp: int
    until: int
    written: int = 0

    def ends(self, now: float) -> float:
        """When the gateway stops to apply it: now, where it was written after now."""
        return min(self.until, now) if self.written > now + CLOCK_SLACK_S else float(self.until)


def format_route(route: Route) -> str:
    """The value in route.map. Raises Refused for a version or a salt that cannot be written."""
    for what, text in (
        ("salt", route.salt),
        ("default version", route.default_version),
        ("other version", route.other_version),
    ):
        if not _WORD.fullmatch(text):
            raise Refused(
                f"{route.endpoint}: {what} {text!r} may have letters, digits and ._+- only, at most 64"
            )
    return ":".join(
        (
            route.default.value,
            route.other.value,
            str(route.generation),
            route.salt,
            route.default_version,
            route.other_version,
        )
    )


def parse_route(endpoint: str, value: str) -> Route:
    """What `format_route` wrote, without a share. Raises NotApplied when it is none of ours."""
    parts = value.split(":")
    try:
        default, other, generation, salt, default_version, other_version = parts
        route = Route(
            endpoint=endpoint,
            generation=int(generation),
            default=Slot(default),
            default_version=default_version,
            other_version=other_version,
            salt=salt,
        )
    except ValueError as error:
        raise NotApplied(f"{endpoint}: the gateway's route {value!r} is not one of ours") from error
    if route.other.value != other:
        raise NotApplied(f"{endpoint}: the gateway's route {value!r} names one slot twice")
    return route


def grant_key(endpoint: str, generation: int) -> str:
    """The key in grant.map."""
    return f"{endpoint}#{generation}"


def format_grant(route: Route, now: float) -> str:
    """The value in grant.map. The end is rounded down: a lease never lasts longer than asked."""
    return f"{route.share_bp}:{int(route.until) if route.share_bp else 0}:{int(now)}"


def parse_grant(value: str) -> Grant:
    """What `format_grant` wrote, now or when it did not write the time yet."""
    try:
        return Grant(*(int(part) for part in value.split(":")))
    except (ValueError, TypeError) as error:
        raise NotApplied(f"the gateway's grant {value!r} is not one of ours") from error


def read_map(path: Path) -> dict[str, str]:
    """A map file's entries; empty while there is no file."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    entries: dict[str, str] = {}
    for line in lines:
        key, _, value = line.strip().partition(" ")
        if key and not key.startswith("#"):
            entries[key] = value.strip()
    return entries


def write_map(path: Path, entries: dict[str, str], *, lasting: bool = False) -> None:
    """Replace a map file whole; `lasting` as in `write_private`."""
    text = "".join(f"{key} {value}\n" for key, value in sorted(entries.items()))
    write_private(path, text, lasting=lasting)


class HeldUp(Exception):
    """This process was stopped in the middle of a change: read the present state and decide again."""


class Turn:
    """One writer's turn, which is over once it has lasted too long.

    A process that is stopped in the middle of a change and wakes up later must not finish it:
    a rollback may have passed it by. `check` is called before every effect.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()

    def check(self) -> None:
        """Raise HeldUp when this turn began too long ago."""
        if self._clock() - self._since > _HELD_S_MAX:
            raise HeldUp


@contextlib.contextmanager
def map_turn(gateway_dir: Path) -> Generator[Turn]:
    """One writer of the map files at a time, as far as the others are alive.

    A holder that does not let go within a second is passed over: a rollback never waits for a
    stopped process, and its `Turn` keeps that one from finishing when it wakes up.
    """
    with timed_lock(gateway_dir / "maps.lock", wait_s=_LOCK_WAIT_S):
        yield Turn()
