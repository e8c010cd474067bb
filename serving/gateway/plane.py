"""Moves traffic: writes one endpoint's route and grant, everywhere, and reads them back.

Order of a change: check the fences against what every worker holds now, map file, command to
every worker, read back. A new generation is one `set map` a worker; its predecessor's grants are
void from that moment and deleted afterwards, so that a stale loop finds nothing to renew.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from configs.settings import Settings
from serving.endpoint import Route
from serving.errors import NotApplied
from serving.fence import check_change
from serving.gateway.maps import (
    GRANT_MAP,
    ROUTE_MAP,
    HeldUp,
    Turn,
    format_grant,
    format_route,
    grant_key,
    map_turn,
    parse_grant,
    parse_route,
    read_map,
    write_map,
)
from serving.gateway.places import gateway_runtime
from serving.gateway.runtime import Worker

_TRIES = 3


class RoutePlane:
    """The routes of one gateway. Raises PlatformUnavailable wherever it does not answer."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._dir = settings.gateway_dir
        self._runtime = gateway_runtime(settings)
        self._clock = clock

    def route(self, endpoint: str) -> Route | None:
        """The route that the workers apply, with its grant (perhaps run out); None: unknown.

        Where workers differ, which only an interrupted change leaves behind, the newest generation
        counts: it is the one that fences.
        """
        workers = self._runtime.workers()
        values = [value for value in self._runtime.get_map(ROUTE_MAP, endpoint, workers).values() if value]
        if not values:
            return None
        newest = max((parse_route(endpoint, value) for value in values), key=_generation)
        return self._granted(newest, workers)

    def apply(self, route: Route, *, before_new: Callable[[Route | None], None]) -> None:
        """Make `route` the truth of the data plane. Idempotent.

        `before_new(current)` is asked before a new generation is written, and may raise. Raises
        Fenced, LeaseExpired, Refused before anything is changed, NotApplied after a read-back that
        differs.
        """
        for _ in range(_TRIES):
            try:
                with map_turn(self._dir) as turn:
                    self._change(route, turn, before_new)
                    return
            except HeldUp:
                continue  # stopped in the middle: look at the world again, then decide
        raise NotApplied(
            f"{route.endpoint}: this process was held up {_TRIES} times while it changed the route. "
            "Next: interlock status, then try again"
        )

    def _change(self, route: Route, turn: Turn, before_new: Callable[[Route | None], None]) -> None:
        value, grant = format_route(route), format_grant(route, self._clock())
        applied = self.route(route.endpoint)
        known = [one for one in (applied, self._written(route.endpoint, applied)) if one is not None]
        check_change(max(known, key=_generation, default=None), route, self._clock())
        is_new = applied is None or applied.generation < route.generation
        if is_new:
            before_new(applied)
        try:
            # A renewal never touches the route, so that not even a late one could bring an old one back.
            if is_new or not self._everywhere(ROUTE_MAP, route.endpoint, value):
                self._write(ROUTE_MAP, route.endpoint, value, turn)
            self._void_older(route, turn)
            if route.share_bp > 0 or any(one.generation == route.generation for one in known):
                self._write(GRANT_MAP, grant_key(route.endpoint, route.generation), grant, turn)
        except NotApplied:
            # Somebody else may have moved on in between, which is a fence and no fault of the gateway.
            check_change(self.route(route.endpoint), route, self._clock())
            raise

    def _everywhere(self, name: str, key: str, value: str) -> bool:
        """Whether the file and every worker hold this value: an interrupted change reached only some."""
        held = self._runtime.get_map(name, key).values()
        return read_map(self._dir / name).get(key) == value and all(found == value for found in held)

    def _written(self, endpoint: str, applied: Route | None) -> Route | None:
        """The route in the map file, where it differs: newer than the applied one after an interruption."""
        value = read_map(self._dir / ROUTE_MAP).get(endpoint)
        if not value or (applied is not None and value == format_route(applied)):
            return None
        return self._granted(parse_route(endpoint, value), self._runtime.workers())

    def _granted(self, route: Route, workers: Sequence[Worker]) -> Route:
        key = grant_key(route.endpoint, route.generation)
        held = self._runtime.get_map(GRANT_MAP, key, workers).values()
        grants = [parse_grant(value) for value in held if value]
        largest = max(grants, key=lambda grant: (grant.share_bp, grant.until), default=None)
        if largest is None:
            return route
        return dataclasses.replace(route, share_bp=largest.share_bp, until=largest.ends(self._clock()))

    def _write(self, name: str, key: str, value: str, turn: Turn) -> None:
        """The file, then every worker, then the read-back."""
        path = self._dir / name
        entries = read_map(path)
        if entries.get(key) != value:
            turn.check()
            write_map(path, {**entries, key: value})
        workers = self._runtime.workers()  # after the file: a worker that starts later has read it
        turn.check()
        self._runtime.set_map(name, key, value, workers)
        for pid, found in self._runtime.get_map(name, key, workers).items():
            if found != value:
                raise NotApplied(
                    f"asked {name} {key}={value}, the gateway (pid {pid}) reports {found}. "
                    "Next: interlock status"
                )

    def _void_older(self, route: Route, turn: Turn) -> None:
        mine = f"{route.endpoint}#"
        own = grant_key(route.endpoint, route.generation)
        path = self._dir / GRANT_MAP
        entries = read_map(path)
        older = [key for key in entries if key.startswith(mine) and key != own]
        if older:
            turn.check()
            write_map(path, {key: value for key, value in entries.items() if key not in older})
        held = [key for key in self._runtime.show_map(GRANT_MAP) if key.startswith(mine) and key != own]
        for key in {*older, *held}:
            self._runtime.delete_map(GRANT_MAP, key)


def _generation(route: Route) -> int:
    return route.generation
