"""The way back: one move of traffic, then everything that tells of it.

Imports neither Prefect nor MLflow: it must work, and at once, while either is down. The aliases
follow when MLflow answers; until then the intent stands in the journal and `reconcile` finishes.
"""

from __future__ import annotations

from dataclasses import dataclass

from serving.errors import Refused, TransientError
from serving.records import EndpointRow, ReleaseRow, ReleaseState
from tasks import transitions
from tasks.bench import Bench
from tasks.registry import PREVIOUS


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """What a rollback did. `traffic_ms` is from the call until the platform had read back the route."""

    endpoint: str
    was: str
    now: str
    traffic_ms: float
    started_cold: bool
    pending: str

    @property
    def message(self) -> str:
        """One sentence for people."""
        text = (
            f"{self.endpoint}: version {self.was} is off, version {self.now} serves ({self.traffic_ms:.0f} ms"
        )
        text += ", after a cold start)" if self.started_cold else ")"
        return f"{text}. Pending: {self.pending}" if self.pending else f"{text}."


def roll_back(bench: Bench, *, who: str, reason: str) -> RollbackReport:
    """From an open release back to its champion, else from the champion to the previous version.

    Raises `Refused` where there is nothing to return to, or where the previous version is not
    healthy: then traffic stays and a person decides.
    """
    transitions.finish(bench)
    row = bench.row()
    if not row.champion:
        raise Refused(f"{bench.name}: it never served, so there is nothing to roll back.")
    release = bench.journal.open_release(bench.name)
    if release is not None and row.release_id == release.id:
        return _timed(bench, row, release, row.champion, who, reason, cold=False)
    cold = _warm_previous(bench, row)
    previous = bench.row().other_version
    promoted = next((old for old in bench.journal.releases(bench.name, version=row.champion)), None)
    return _timed(bench, row, promoted, previous, who, reason, cold=cold)


def abort(bench: Bench, *, who: str) -> str:
    """Ask the running release to end, or end it here where nobody runs it. Returns what was done."""
    release = bench.journal.open_release(bench.name)
    if release is None:
        raise Refused(f"{bench.name}: no release is open. Nothing to abort.")
    if release.state is ReleaseState.RUNNING and release.owner_until >= bench.clock():
        bench.journal.ask(release.id, "abort")
        return f"{release.id} was asked to end; it does within a look"
    transitions.reject(
        bench, release, state=ReleaseState.ABORTED, who=who, reason=f"aborted by {who}", at=bench.clock()
    )
    return f"{release.id} is ABORTED"


def _timed(
    bench: Bench,
    row: EndpointRow,
    release: ReleaseRow | None,
    back_to: str,
    who: str,
    reason: str,
    *,
    cold: bool,
) -> RollbackReport:
    """Do it, and say how long the traffic took and what is left to do."""
    at = bench.clock()
    ramping = release is not None and not release.state.final
    pending = ""
    try:
        if ramping and release is not None:
            transitions.reject(bench, release, state=ReleaseState.ROLLED_BACK, who=who, reason=reason, at=at)
        else:
            transitions.return_to_previous(bench, release, who=who, reason=reason, at=at)
    except TransientError as error:
        if bench.row().generation == row.generation:
            raise
        pending = f"aliases and tags ({error}); `reconcile` finishes them"
    moved = next((line for line in bench.journal.audit(bench.name, limit=20) if line.what == "decided"), None)
    was = release.version if ramping and release is not None else row.champion
    traffic_ms = ((moved.time if moved else bench.clock()) - at) * 1000
    return RollbackReport(bench.name, was, back_to, traffic_ms, cold, pending)


def _warm_previous(bench: Bench, row: EndpointRow) -> bool:
    """Start the previous version in the free slot where it is cold. Whether that was needed."""
    if row.other_version:
        return False
    previous = bench.registry.aliased(bench.policy.model, PREVIOUS)
    if not previous or previous == row.champion:
        raise Refused(
            f"{bench.name}: no previous version is known. Next: interlock release {bench.name} VERSION"
        )
    slot = row.default.sibling
    bench.endpoint.deploy(slot, previous, uri=f"models:/{bench.policy.model}/{previous}")
    bench.journal.change(
        bench.name,
        generation=row.generation,
        new_generation=row.generation + 1,
        now=bench.clock(),
        **{f"{slot.value}_version": previous},
    )
    transitions.follow_journal(bench)
    return True
