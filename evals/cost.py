"""What the machines of a release cost, by version: instance-hours, dollars, dollars a request.

While a release runs two versions have machines. How many is seen now and then, and between two
sightings the first one is taken to hold. Times are seconds since the epoch, hours are hours of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """Machines of each version at a moment, by kind of machine, and the live requests that it had answered.

    `answered` counts from the release's first share on; it never falls.
    """

    time: float
    machines: Mapping[str, Mapping[str, int]]
    answered: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class VersionCost:
    """One version's part. `dollars_per_million` is None where it answered nothing.

    It is what its machines cost while it answered, by what it answered meanwhile: half-idle machines make a
    request dear.
    """

    version: str
    hours: float
    dollars: float
    requests: int
    dollars_per_million: float | None


def fleet_cost(
    sightings: Sequence[Sighting], prices: Mapping[str, float], *, until: float
) -> tuple[VersionCost, ...]:
    """Each version's cost from the first sighting to `until`, by version.

    `prices` are dollars an hour by kind of machine; a kind without one counts its hours and costs nothing.
    """
    if not sightings:
        return ()
    ends = [*(one.time for one in sightings[1:]), until]
    hours: dict[str, float] = {}
    dollars: dict[str, float] = {}
    busy: dict[str, float] = {}
    for index, (seen, end) in enumerate(zip(sightings, ends, strict=True)):
        stretch = max(0.0, end - seen.time) / _HOUR_S
        later = sightings[index + 1].answered if index + 1 < len(sightings) else seen.answered
        for version, kinds in seen.machines.items():
            cost = sum(prices.get(kind, 0.0) * count for kind, count in kinds.items()) * stretch
            hours[version] = hours.get(version, 0.0) + sum(kinds.values()) * stretch
            dollars[version] = dollars.get(version, 0.0) + cost
            if later.get(version, 0) > seen.answered.get(version, 0):
                busy[version] = busy.get(version, 0.0) + cost
    answered = sightings[-1].answered
    return tuple(
        VersionCost(
            version,
            hours[version],
            dollars[version],
            answered.get(version, 0),
            busy[version] / answered[version] * 1e6 if busy.get(version) else None,
        )
        for version in sorted(hours)
    )


def cost_an_hour(machines: Mapping[str, int], prices: Mapping[str, float]) -> float:
    """Dollars an hour of these machines."""
    return sum(prices.get(kind, 0.0) * count for kind, count in machines.items())
