"""The way back: one move of traffic, then everything that tells of it.

Imports neither Prefect nor MLflow: it must work, and at once, while either is down. The aliases
follow when MLflow answers; until then the intent stands in the journal and `reconcile` finishes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serving.errors import Fenced, Refused, TransientError
from serving.records import EndpointRow, ReleaseState, Stage
from tasks import changes, transitions
from tasks.bench import Bench
from tasks.registry import PREVIOUS

_RACES_MAX = 3


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

    Traffic moves first; a promotion that is still being told to MLflow is turned around at once.
    Raises `Refused` where there is nothing to return to, or where the previous version is not
    healthy: then traffic stays and a person decides.
    """
    for _ in range(_RACES_MAX):
        try:
            return _roll_back_once(bench, who, reason)
        except Fenced as error:
            lost = error  # somebody moved the endpoint in between: look again, decide again
    raise lost


def abort(bench: Bench, *, who: str) -> str:
    """Ask the running release to end, or end it here where nobody can hear. Returns what was done."""
    release = bench.journal.open_release(bench.name)
    if release is None:
        raise Refused(f"{bench.name}: no release is open. Nothing to abort.")
    bench.journal.ask(release.id, "abort")
    runs = release.state is ReleaseState.RUNNING and release.owner_until >= bench.clock()
    if runs and release.stage is not Stage.APPROVE:
        return f"{release.id} was asked to end; it does within a look"
    transitions.reject(
        bench, release, state=ReleaseState.ABORTED, who=who, reason=f"aborted by {who}", at=bench.clock()
    )
    return f"{release.id} is ABORTED"


def _roll_back_once(bench: Bench, who: str, reason: str) -> RollbackReport:
    at, row = bench.clock(), bench.row()
    if not row.champion:
        raise Refused(f"{bench.name}: it never served, so there is nothing to roll back.")
    turned = changes.supersede(bench, who=who, reason=reason)
    if turned is not None:
        return _report(bench, at, turned.loser, turned.winner, cold=False, pending=_finish_later(bench))
    if row.intent is not None:
        changes.follow_journal(bench)  # a rollback is decided already: its traffic, and then its rest
        change = changes.Change.of(row.intent)
        return _report(bench, at, change.loser, change.winner, cold=False, pending=_finish_later(bench))
    release = bench.journal.open_release(bench.name)
    if release is not None and row.release_id == release.id:
        pending = _attempt(
            bench,
            row,
            lambda: transitions.reject(
                bench, release, state=ReleaseState.ROLLED_BACK, who=who, reason=reason, at=at
            ),
        )
        return _report(bench, at, release.version, row.champion, cold=False, pending=pending)
    cold = _warm_previous(bench, row)
    at, row = bench.clock(), bench.row()
    promoted = next(iter(bench.journal.releases(bench.name, version=row.champion)), None)
    pending = _attempt(
        bench, row, lambda: transitions.return_to_previous(bench, promoted, who=who, reason=reason, at=at)
    )
    return _report(bench, at, row.champion, row.other_version, cold=cold, pending=pending)


def _attempt(bench: Bench, row: EndpointRow, change: Callable[[], object]) -> str:
    """Do it; what fails once the traffic has moved is only pending, and said."""
    try:
        change()
    except TransientError as error:
        if bench.row().generation == row.generation:
            raise
        return _pending(error)
    return ""


def _finish_later(bench: Bench) -> str:
    try:
        changes.finish(bench)
    except TransientError as error:
        return _pending(error)
    return ""


def _pending(error: TransientError) -> str:
    return f"aliases and tags ({error}); `reconcile` finishes them"


def _report(bench: Bench, at: float, was: str, now: str, *, cold: bool, pending: str) -> RollbackReport:
    moved = next((line for line in bench.journal.audit(bench.name, limit=20) if line.what == "decided"), None)
    traffic_ms = max(0.0, (moved.time if moved else bench.clock()) - at) * 1000
    return RollbackReport(bench.name, was, now, traffic_ms, cold, pending)


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
