"""What a release's machines cost: counted as it goes, told wherever the release is.

How many machines each version has is stored with the release every few minutes, and where a stage
begins. Everything else is worked out from these sightings and the policy's prices, so it can be
worked out again at any time. Informs only: a platform that does not answer stops no release.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from configs.prices import machine_prices
from evals.cost import Sighting, VersionCost, cost_an_hour, fleet_cost
from serving.errors import ServingError
from serving.journal import Journal
from serving.records import LookRow, ReleaseRow, ReleaseState
from tasks.bench import Bench, stored_policy

_LOG = logging.getLogger("interlock.cost")
_FLEET = "fleet"
"""Under this the sightings stand among the journal's looks."""
_EVERY_S = 300.0
_HOUR_S = 3600.0


class Meter:
    """Counts the machines of one release. Does nothing where the policy has no prices."""

    def __init__(self, bench: Bench, release_id: str) -> None:
        self._bench = bench
        self._release_id = release_id
        self._rows: list[LookRow] | None = None
        self._answered: Counter[str] = Counter()

    def answered(self, requests: Mapping[str, int]) -> None:
        """Live requests by version that were not counted before."""
        self._answered.update(requests)

    def look(self, *, now: float, at_once: bool = False) -> None:
        """See how many machines there are: every few minutes, or at once."""
        if not machine_prices(self._bench.policy):
            return
        try:
            rows = self._stored()
            if at_once or not rows or now - rows[-1].time >= _EVERY_S:
                self._store(rows, now, _machines(self._bench))
        except ServingError as error:
            _LOG.warning("%s: machines were not counted: %s", self._bench.name, error)

    def end(self, *, now: float) -> None:
        """Store what was answered until the end. Asks the platform nothing: the machines may be gone."""
        try:
            rows = self._stored() if machine_prices(self._bench.policy) else []
            if rows and rows[-1].time < now:
                self._store(rows, now, rows[-1].stats["machines"])
        except ServingError as error:
            _LOG.warning("%s: the last requests were not counted: %s", self._bench.name, error)

    def _stored(self) -> list[LookRow]:
        """What is stored, read once: what an earlier run had counted is counted on."""
        if self._rows is None:
            self._rows = self._bench.journal.looks(self._release_id, _FLEET)
            if self._rows:
                self._answered.update(self._rows[-1].stats["answered"])
        return self._rows

    def _store(self, rows: list[LookRow], now: float, machines: Mapping[str, Any]) -> None:
        stats = {"machines": machines, "answered": dict(self._answered)}
        row = LookRow(self._release_id, _FLEET, len(rows), now, "", f"{now!r}", stats)
        self._bench.journal.add_look(row)
        rows.append(row)


def release_cost(journal: Journal, release: ReleaseRow, *, now: float) -> dict[str, Any] | None:
    """What the two fleets of a release cost until its end, or until now; None where nothing is known.

    `versions` has hours, dollars, requests and dollars a million requests by version; `candidate_dollars`
    is what the release cost on top of what served before, `dollars_an_hour` both fleets now;
    `kept_dollars` what keeping the old champion warm can cost after a promotion.
    """
    policy = stored_policy(release)
    if policy is None:
        return None
    prices = machine_prices(policy)
    rows = journal.looks(release.id, _FLEET) if prices else []
    if not rows:
        return None
    sightings = [Sighting(row.time, row.stats["machines"], row.stats["answered"]) for row in rows]
    costs = fleet_cost(sightings, prices, until=(release.state.final and release.ended_at) or now)
    newest = sightings[-1].machines
    old = cost_an_hour(newest.get(release.champion, {}), prices)
    kept_s = policy.keep_previous_s if release.state is ReleaseState.PROMOTED else 0.0
    return {
        "versions": {one.version: _plain(one) for one in costs},
        "candidate_dollars": next((one.dollars for one in costs if one.version == release.version), 0.0),
        "dollars_an_hour": sum(cost_an_hour(kinds, prices) for kinds in newest.values()),
        "kept_dollars": old * kept_s / _HOUR_S,
    }


def cost_words(cost: Mapping[str, Any], candidate: str) -> str:
    """The same in a line for people."""
    parts = [f"the candidate's machines cost {_dollars(cost['candidate_dollars'])}"]
    for version, one in cost["versions"].items():
        role = "candidate" if version == candidate else "champion"
        said = f"{role} v{version}: {one['hours']:.3g} machine-hours, {_dollars(one['dollars'])}"
        if one["dollars_per_million"] is not None:
            said += f", {_dollars(one['dollars_per_million'])} a million requests"
        parts.append(said)
    if cost["kept_dollars"]:
        parts.append(f"keeping the old champion warm costs up to {_dollars(cost['kept_dollars'])} more")
    return "; ".join(parts)


def cost_numbers(cost: Mapping[str, Any]) -> dict[str, float]:
    """The same as metrics of the release's run."""
    found = {"cost/candidate_dollars": float(cost["candidate_dollars"])}
    for version, one in cost["versions"].items():
        found |= {f"cost/v{version}/{name}": float(value) for name, value in one.items() if value is not None}
    return found


def _machines(bench: Bench) -> dict[str, dict[str, int]]:
    """Machines by version and kind, as the platform has them now."""
    state = bench.endpoint.describe()
    return {
        version: dict(Counter(replica.machine for replica in state.replicas.get(slot, ())))
        for slot, version in state.versions.items()
        if version
    }


def _plain(cost: VersionCost) -> dict[str, Any]:
    return {
        "hours": cost.hours,
        "dollars": cost.dollars,
        "requests": cost.requests,
        "dollars_per_million": cost.dollars_per_million,
    }


def _dollars(value: float) -> str:
    return f"${value:.2f}" if value >= 0.01 or value == 0 else f"${value:.2g}"
