"""How an endpoint's route is kept on Vertex: in its traffic split and its labels, changed as one.

A deployed version's id is chosen by us: its first digit is the slot, the rest a digest of version
and URI. So a repeated deploy asks for the same id, and a slot can be read from the id alone. The
labels carry what a split cannot say: generation, default slot, salt and until when a share is
meant. Split and labels travel in one update under one etag, so a stale writer cannot part them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from serving.endpoint import Route, Slot
from serving.errors import Refused

_DIGITS = {Slot.BLUE: "1", Slot.GREEN: "2"}
_SLOTS = {digit: slot for slot, digit in _DIGITS.items()}
_BP_PER_PERCENT = 100
_GENERATION, _DEFAULT, _SALT, _UNTIL = (
    f"interlock-{name}" for name in ("generation", "default", "salt", "until")
)
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployed version: Vertex's id of it, our version and slot, and its replicas in service."""

    id: str
    slot: Slot
    version: str
    replicas: int = 1


def deployed_id(slot: Slot, version: str, uri: str) -> str:
    """Ten digits, the most that Vertex allows: the slot, then nine of a digest of version and URI."""
    number = int.from_bytes(hashlib.sha256(f"{version} {uri}".encode()).digest()[:8], "big") % 10**9
    return f"{_DIGITS[slot]}{number:09d}"


def slot_of(identifier: str) -> Slot | None:
    """The slot that a deployed id stands for; None for one that is not ours."""
    return _SLOTS.get(identifier[:1]) if len(identifier) == 10 and identifier.isdigit() else None


def split_of(route: Route, held: Mapping[Slot, Deployed]) -> dict[str, int]:
    """The traffic split of a route in whole percents, by deployed id.

    Raises Refused for a share between two percents, and where a slot does not hold the version that
    the route names.
    """
    if route.share_bp % _BP_PER_PERCENT:
        raise Refused(
            f"{route.endpoint}: asked for {route.share_bp / 100:g}%; Vertex splits in whole percents"
        )
    wanted = {route.default: route.default_version}
    if route.other_version:
        wanted[route.other] = route.other_version
    for slot, version in wanted.items():
        found = held[slot].version if slot in held else "nothing"
        if found != version:
            raise Refused(
                f"{route.endpoint}: asked for version {version} in {slot}, which holds {found}. "
                "Next: deploy it there first"
            )
    share = route.share_bp // _BP_PER_PERCENT
    split = {held[route.default].id: 100 - share}
    if route.other_version:
        split[held[route.other].id] = share
    return split


def labelled(salt: str) -> str:
    """A salt as a label can hold it: unchanged where it is lower case letters, digits, `_` and `-`."""
    return salt if _LABEL.fullmatch(salt) else hashlib.sha256(salt.encode()).hexdigest()[:40]


def labels_of(route: Route) -> dict[str, str]:
    """What the split cannot say, in a label's alphabet. Times are cut to ms: a share never lasts longer."""
    return {
        _GENERATION: str(route.generation),
        _DEFAULT: route.default.value,
        _SALT: labelled(route.salt),
        _UNTIL: f"{math.floor(route.until * 1000) / 1000:.3f}".replace(".", "_"),
    }


def route_of(
    endpoint: str, labels: Mapping[str, str], split: Mapping[str, int], held: Mapping[Slot, Deployed]
) -> Route | None:
    """The route as Vertex has it; None where Interlock never applied one. The share is the split's."""
    if _GENERATION not in labels:
        return None
    default = Slot(labels[_DEFAULT])
    other = held.get(default.sibling)
    share_bp = split.get(other.id, 0) * _BP_PER_PERCENT if other is not None else 0
    return Route(
        endpoint,
        int(labels[_GENERATION]),
        default,
        held[default].version if default in held else "",
        other_version=other.version if other is not None and other.id in split else "",
        salt=labels[_SALT],
        share_bp=share_bp,
        until=float(labels[_UNTIL].replace("_", ".")) if share_bp else 0.0,
    )
