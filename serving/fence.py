"""Which change of a route is allowed: pure rules, the same for every platform that holds leases.

Generations fence. A release works under one generation; a rollback or a promotion begins the
next one, and from then on whatever the older release still asks for is refused.
"""

from __future__ import annotations

import dataclasses

from serving.endpoint import SHARE_SCALE, Route, Slot
from serving.errors import Fenced, LeaseExpired, Refused


def check_change(current: Route | None, asked: Route, now: float) -> None:
    """Raise unless `asked` may replace `current`; both with their shares as written, not as effective.

    `now` is in seconds since the epoch. Raises Fenced for an older generation, LeaseExpired for
    a lease that ran out (or is asked for in the past), Refused for anything contradictory.
    """
    _check_plain(asked)
    if asked.share_bp > 0 and asked.until <= now:
        raise LeaseExpired(
            f"{asked.endpoint}: asked for {asked.share_bp} bp until {asked.until:.0f}, "
            f"which is {now - asked.until:.1f} s ago. Next: re-enter through fresh checks"
        )
    if current is None:
        return
    if asked.generation < current.generation:
        raise Fenced(
            f"{asked.endpoint}: asked as generation {asked.generation}, but generation "
            f"{current.generation} rules. Next: stop, another release or a rollback took over"
        )
    if asked.generation > current.generation:
        return
    if _without_grant(asked) != _without_grant(current):
        raise Refused(
            f"{asked.endpoint}: generation {asked.generation} exists with other content "
            f"(asked {_without_grant(asked)}, found {_without_grant(current)}). "
            "Next: a changed route needs a new generation"
        )
    if asked.share_bp > 0 and current.share_bp > 0 and current.until <= now:
        raise LeaseExpired(
            f"{asked.endpoint}: the lease of generation {asked.generation} ran out "
            f"{now - current.until:.1f} s ago. Next: apply share 0, then re-enter through fresh checks"
        )


def check_deploy(route: Route | None, slot: Slot, version: str, held: str, now: float) -> None:
    """Raise Refused unless `version` may be put into `slot`, which holds `held` ("" when empty)."""
    if route is None or held == version:
        return
    if slot is route.default:
        raise Refused(
            f"{route.endpoint}: asked to put version {version} into {slot}, the default slot, which "
            f"serves {held or route.default_version}. Next: deploy into {slot.sibling}, then move the route"
        )
    _check_no_share(route, f"put version {version} into {slot}", now)


def check_retire(route: Route | None, slot: Slot, now: float) -> None:
    """Raise Refused unless the slot answers no request by the route."""
    if route is None:
        return
    if slot is route.default:
        raise Refused(
            f"{route.endpoint}: asked to retire {slot}, the default slot, which serves version "
            f"{route.default_version}. Next: make {slot.sibling} the default first"
        )
    _check_no_share(route, f"retire {slot}", now)


def effective(route: Route, now: float) -> Route:
    """The route as the data plane applies it: without a share once the lease ran out."""
    if route.share_bp > 0 and route.until > now:
        return route
    return dataclasses.replace(route, share_bp=0, until=0.0)


def _check_no_share(route: Route, what: str, now: float) -> None:
    share_bp = effective(route, now).share_bp
    if share_bp > 0:
        raise Refused(
            f"{route.endpoint}: asked to {what}, which still holds {share_bp} bp of live traffic. "
            "Next: apply share 0 first"
        )


def _without_grant(route: Route) -> Route:
    return dataclasses.replace(route, share_bp=0, until=0.0)


def _check_plain(route: Route) -> None:
    if not 0 <= route.share_bp <= SHARE_SCALE:
        raise Refused(f"{route.endpoint}: a share is 0 to {SHARE_SCALE} basis points, not {route.share_bp}")
    if route.generation < 0:
        raise Refused(f"{route.endpoint}: a generation is not negative, {route.generation} is")
    if not route.default_version:
        raise Refused(f"{route.endpoint}: the default slot must hold a version")
    if route.share_bp > 0 and not route.other_version:
        raise Refused(f"{route.endpoint}: asked for {route.share_bp} bp for an empty slot")
