"""The way back: one move of traffic, then everything that tells of it.

Imports neither Prefect nor MLflow: it must work, and at once, while either is down. The aliases
follow when MLflow answers; until then the intent stands in the journal and `reconcile` finishes.

From an open release there is nothing to prove: its champion still is the default. To the version
before a promotion there is: known, compatible with what clients send, warm (started first where
it is cold), healthy by the gateway's word and by a few recent requests. Where one of these fails
traffic stays, and a person is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from serving.errors import Fenced, NotHealthy, Refused, TransientError
from serving.records import EndpointRow, ReleaseState, Stage
from tasks import changes, transitions, waiting
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.previous import PreviousUnhealthy, Warmed, check_compatible, prove_previous, warm_previous
from tasks.signatures import not_compared

_RACES_MAX = 3


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """What a rollback did. `traffic_ms` is from the decision until the platform had read back the route.

    `cold_s` is what starting the previous version took before that, 0 where it was warm; `proof`
    what was known of its health, `unchecked` what was not asked of it; `pending` what MLflow has still to be
    told. `is_old` says that an earlier call had done it all.
    """

    endpoint: str
    was: str
    now: str
    traffic_ms: float
    cold_s: float = 0.0
    pending: str = ""
    proof: str = ""
    who: str = ""
    reason: str = ""
    is_old: bool = False
    unchecked: str = ""

    @property
    def started_cold(self) -> bool:
        """Whether the version that serves now had to be started first."""
        return self.cold_s > 0

    @property
    def message(self) -> str:
        """One sentence for people."""
        if self.is_old:
            return f"{self.endpoint}: version {self.was} is off already, version {self.now} serves."
        text = (
            f"{self.endpoint}: version {self.was} is off, version {self.now} serves ({self.traffic_ms:.0f} ms"
        )
        text += f", after a cold start of {self.cold_s:.1f} s)" if self.started_cold else ")"
        return f"{text}. Pending: {self.pending}" if self.pending else f"{text}."


def roll_back(
    bench: Bench, *, who: str, reason: str, serving: str = "", force: bool = False
) -> RollbackReport:
    """From an open release back to its champion, else from the champion to the previous version.

    Traffic moves first; a promotion that is still being told to MLflow is turned around at once.
    `serving` is the champion that the decision was about: `Fenced` where another one serves by now.
    `force` goes back although clients would notice (signatures), and asks no recent requests. Raises
    `Refused` where there is nothing to return to, or where the previous version is not healthy: then
    traffic stays and a person decides.
    """
    for _ in range(_RACES_MAX):
        try:
            return replace(_roll_back_once(bench, who, reason, serving, force), who=who, reason=reason)
        except PreviousUnhealthy as unhealthy:
            alert(
                bench,
                "critical",
                str(unhealthy),
                numbers={"asked_by": who, "reason": reason},
                next_step=f"interlock logs; then interlock release {bench.name} VERSION",
                key="rollback-impossible",
            )
            raise
        except Fenced as error:
            if serving and bench.row().champion != serving:
                raise
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
    reason = f"aborted by {who}"
    transitions.reject(bench, release, state=ReleaseState.ABORTED, who=who, reason=reason, at=bench.clock())
    waiting.end_flow_run(bench, release, name="Aborted", message=reason)
    return f"{release.id} is ABORTED"


def _roll_back_once(bench: Bench, who: str, reason: str, serving: str, force: bool) -> RollbackReport:
    at, row = bench.clock(), bench.row()
    if not row.champion:
        raise Refused(f"{bench.name}: it never served, so there is nothing to roll back.")
    if serving and row.champion != serving:
        raise Fenced(f"{bench.name}: version {row.champion} serves by now, not {serving}. Nothing changed.")
    turned = changes.supersede(bench, who=who, reason=reason)
    if turned is not None:
        return _report(bench, at, turned.loser, turned.winner, pending=_finish_later(bench))
    if row.intent is not None:
        changes.follow_journal(bench)  # a rollback is decided already: its traffic, and then its rest
        change = changes.Change.of(row.intent)
        return _report(bench, at, change.loser, change.winner, pending=_finish_later(bench))
    release = bench.journal.open_release(bench.name)
    if release is not None and row.release_id == release.id:
        pending = _attempt(
            bench,
            row,
            lambda: transitions.reject(
                bench, release, state=ReleaseState.ROLLED_BACK, who=who, reason=reason, at=at
            ),
        )
        waiting.end_flow_run(bench, release, name="Aborted", message=f"rolled back by {who}: {reason}")
        return _report(bench, at, release.version, row.champion, pending=pending)
    return _done_before(bench, row) or _return_to_previous(bench, row, who, reason, force)


def _return_to_previous(bench: Bench, row: EndpointRow, who: str, reason: str, force: bool) -> RollbackReport:
    if not force:
        check_compatible(bench, row)
    try:
        warmed = warm_previous(bench, row)
    except NotHealthy as error:
        raise PreviousUnhealthy(
            f"{bench.name}: the previous version does not start, so traffic stays on version {row.champion}: "
            f"{error}"
        ) from error
    proof = prove_previous(bench, warmed, ask=not force)
    unchecked = not_compared(bench, row.champion, warmed.version)
    at, row = bench.clock(), bench.row()
    promoted = next(iter(bench.journal.releases(bench.name, version=row.champion)), None)
    pending = _attempt(
        bench,
        row,
        lambda: transitions.return_to_previous(
            bench, promoted, who=who, reason=reason, at=at, proven=warmed.version
        ),
    )
    made = _report(bench, at, row.champion, row.other_version, warmed=warmed, pending=pending, proof=proof)
    return replace(made, unchecked=unchecked)


def _done_before(bench: Bench, row: EndpointRow) -> RollbackReport | None:
    """The rollback that the endpoint rests on, where that is the last thing that was decided for it.

    Asking again must not go back another step: there is no warm version, and nobody asked for that.
    """
    last = next(iter(bench.journal.audit(bench.name, what=("decided",), limit=1)), None)
    if row.other_version or last is None or last.details["kind"] != changes.ROLL_BACK:
        return None
    was, now = str(last.details["loser"]), str(last.details["winner"])
    is_of_champion = bool(was) and now == row.champion and last.details["stage"] in ("watch", "promote")
    return RollbackReport(bench.name, was, now, 0.0, is_old=True) if is_of_champion else None


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


def _report(
    bench: Bench,
    at: float,
    was: str,
    now: str,
    *,
    warmed: Warmed | None = None,
    pending: str = "",
    proof: str = "",
) -> RollbackReport:
    moved = next(iter(bench.journal.audit(bench.name, what=("decided",), limit=1)), None)
    traffic_ms = max(0.0, (moved.time if moved else bench.clock()) - at) * 1000
    return RollbackReport(bench.name, was, now, traffic_ms, warmed.cold_s if warmed else 0.0, pending, proof)
