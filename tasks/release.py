"""One attempt to bring one version to production: its ownership, its progress, its ending.

A release is owned by the flow run that works on it. The claim is renewed from a thread; once it
has run out, or a person or another run took the endpoint further, `check` raises `Fenced` and
the run must change nothing more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from configs.generation import Generation
from evals.verdict import Verdict
from serving.errors import Fenced, PlatformUnavailable, Refused
from serving.journal import Journal
from serving.records import ReleaseRow, ReleaseState, Stage
from tasks.bench import Bench, stored_policy
from tasks.costing import Meter
from tasks.environments import refuse_environment
from tasks.fingerprint import engine
from tasks.trail import Aside, Trail

_LOG = logging.getLogger("interlock.release")
CLAIM_S = 30.0
"""How long a claim lasts unrenewed. Not the share's lease: that one the canary loop itself renews."""
_UNWELCOME = (ReleaseState.REJECTED, ReleaseState.ROLLED_BACK)


class Aborted(Exception):
    """A person asked for the release to end. Not a verdict: the version is not rejected."""


class Release:
    """A claimed release with all that its stages need.

    Use it as a context manager: entering starts renewing the claim, leaving stops it. `row` is
    the journal's row as this run last saw it, `opened_cursor` and `placed_cursor` the observations'
    cursors when this run began and when it placed the candidate, `meter` counts machines, `listeners`
    are told of progress.
    """

    def __init__(self, bench: Bench, row: ReleaseRow, trail: Trail) -> None:
        self.bench = bench
        self.row = row
        self.trail = trail
        self.placed_cursor: str | None = None
        self.opened_cursor: str | None = None
        self.meter = Meter(bench, row.id)
        self.listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._pages: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        self._fenced: Fenced | None = None
        self._thread = threading.Thread(target=self._renew, name=f"claim-{row.id}", daemon=True)

    @property
    def version(self) -> str:
        """The candidate."""
        return self.row.version

    @property
    def first(self) -> bool:
        """Whether this is the endpoint's first champion: nothing to compare with."""
        return self.row.champion == ""

    @property
    def judged_in_place(self) -> bool:
        """Whether the evaluation asks the placed replica, instead of loading the model itself."""
        return isinstance(self.bench.policy.evaluation, Generation)

    def __enter__(self) -> Release:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    def check(self) -> ReleaseRow:
        """Read the release afresh. Raises `Fenced` when it is no longer ours, `Aborted` on request."""
        if self._fenced is not None:
            raise self._fenced
        now = self.bench.clock()
        row = self.bench.journal.release(self.row.id)
        if row is not None and row.owner == self.row.owner and now <= row.owner_until < now + CLAIM_S / 2:
            row = self.bench.journal.renew(row.id, row.owner, lease_s=CLAIM_S, now=now)
        if row is None or row.owner != self.row.owner or row.owner_until < now:
            raise Fenced(
                f"{self.row.id} is no longer run by this flow. Nothing was changed. Next: run it again"
            )
        if row.request == "abort":
            raise Aborted(f"{self.row.id} was aborted by a person")
        self.row = row
        return row

    def draw_later(self, draw: Callable[[], None]) -> None:
        """Draw a page for people once the candidate is placed: the cores are wanted for that first."""
        self._pages.append(draw)

    def draw(self) -> None:
        """Draw what waits, in a thread of its own."""
        while self._pages:
            Aside("pages").offer(self._pages.pop(0))

    def enter(self, stage: Stage) -> None:
        """Say which stage runs now."""
        self.check()
        if stage not in (Stage.EVALUATE, Stage.STAGE):
            self.draw()
        self._update(stage=stage.value, progress={"stage": stage.value})
        self.bench.journal.record(
            self.bench.name,
            f"stage {stage.value}",
            who=self.row.owner,
            now=self.bench.clock(),
            release_id=self.row.id,
        )

    def passed(self, stage: Stage) -> bool:
        """Whether an earlier run of this release already passed a stage."""
        verdict = self.row.verdicts.get(stage.value)
        return verdict is not None and verdict["outcome"] == "PASS"

    def conclude(self, stage: Stage, verdict: Verdict) -> None:
        """Store a stage's verdict in the journal and in the run."""
        concluded = {**verdict.as_dict(), "time": self.bench.clock(), "engine": engine()}
        verdicts = {**self.row.verdicts, stage.value: concluded}
        self._update(verdicts=verdicts)

    def progress(self, values: Mapping[str, Any]) -> None:
        """Replace the newest numbers for humans."""
        self._update(progress={"stage": self.row.stage.value, "time": self.bench.clock(), **values})
        for listener in self.listeners:
            listener(self.row.progress)

    def set_run(self, run_id: str, url: str) -> None:
        """Remember the release's MLflow run and its page."""
        self._update(mlflow_run_id=run_id, mlflow_url=url)
        self.trail.run_id = run_id

    def end(self, state: ReleaseState, reason: str) -> ReleaseRow:
        """Let go of the release in a state from which it can be run again (INTERRUPTED, HELD or WAITING)."""
        if not state.final:
            self.check()
        self.row = self.bench.journal.end_release(
            self.row.id, state=state, reason=reason, now=self.bench.clock()
        )
        return self.row

    def _update(self, **values: Any) -> None:
        self.row = self.bench.journal.update_release(
            self.row.id, self.row.owner, now=self.bench.clock(), **values
        )

    def _renew(self) -> None:
        """Prolong the claim until told to stop. A journal that is away is asked again until time is up."""
        journal = Journal(self.bench.settings.journal)
        until = self.row.owner_until
        while not self._stopped.wait(CLAIM_S / 5):
            try:
                until = journal.renew(
                    self.row.id, self.row.owner, lease_s=CLAIM_S, now=self.bench.clock()
                ).owner_until
            except PlatformUnavailable as error:
                _LOG.warning("%s", error)
                if self.bench.clock() > until:
                    self._fenced = Fenced(f"{self.row.id}: the claim could not be renewed in time ({error})")
            except Fenced as error:
                self._fenced = error
            if self._fenced is not None:
                break
        journal.close()


def open_release(
    bench: Bench, version: str, *, again: bool, reason: str, flow_run_id: str, owner: str
) -> Release:
    """Start a release of a version, or resume the one that was interrupted.

    Raises `Refused` with the next step where another release is open, where the version already
    serves, where it was rejected before (`again` with a `reason` overrides that), where the one that was
    interrupted has a policy that is refused by now, and for an environment.
    """
    refuse_environment(bench.settings, bench.name, version)
    row = bench.row()
    bench.registry.version(bench.policy.model, version)
    existing = bench.journal.open_release(bench.name)
    if existing is None:
        _refuse_ended_run(bench, version, flow_run_id)
        _refuse_unwelcome(bench, row.champion, version, again=again, reason=reason)
        existing = bench.journal.add_release(
            bench.name,
            version,
            champion=row.champion,
            policy=bench.policy.model_dump(mode="json"),
            now=bench.clock(),
        )
    elif existing.version != version:
        raise Refused(
            f"{bench.name}: version {version} was asked for while {existing.id} is {existing.state} in stage "
            f"{existing.stage} (flow run {existing.flow_run_id}). Next: interlock status {bench.name}, then "
            f"interlock abort {bench.name} or wait"
        )
    policy = stored_policy(existing)
    if policy is None:
        raise Refused(
            f"{existing.id} began under a policy that is refused by now, so it cannot go on. Next: interlock "
            f"abort {bench.name}, then interlock release {bench.name} {version}"
        )
    claimed = bench.journal.claim(
        existing.id, owner, lease_s=CLAIM_S, now=bench.clock(), flow_run_id=flow_run_id
    )
    # A resumed release goes on under the policy that it began with: its evidence was counted by it.
    bench.policy = policy
    if claimed.champion != row.champion:
        # The champion changed while the release was interrupted: nothing it had shown still holds.
        claimed = bench.journal.update_release(
            claimed.id,
            owner,
            now=bench.clock(),
            champion=row.champion,
            verdicts={},
            stage=Stage.EVALUATE.value,
        )
    bench.journal.record(
        bench.name,
        "claimed",
        who=owner,
        now=bench.clock(),
        release_id=claimed.id,
        version=version,
        flow_run_id=flow_run_id,
        reason=reason,
    )
    return Release(bench, claimed, Trail(bench.runs, claimed.mlflow_run_id))


def _refuse_ended_run(bench: Bench, version: str, flow_run_id: str) -> None:
    """A flow run belongs to one release: resumed or retried after its end, it must not begin another."""
    for earlier in bench.journal.releases(bench.name, version=version):
        if flow_run_id and earlier.flow_run_id == flow_run_id:
            raise Refused(
                f"{earlier.id} is over: {earlier.state.lower()} ({earlier.reason}). "
                f"Next: interlock release {bench.name} {version} starts a new one"
            )


def _refuse_unwelcome(bench: Bench, champion: str, version: str, *, again: bool, reason: str) -> None:
    if champion == version:
        raise Refused(f"{bench.name}: version {version} is the champion already. Nothing to do.")
    earlier = bench.journal.releases(bench.name, version=version)
    bad = next((release for release in earlier if release.state in _UNWELCOME), None)
    if bad is not None and not (again and reason):
        raise Refused(
            f"{bench.name}: version {version} was {bad.state.lower()} by {bad.id} ({bad.reason}). "
            "Next: register a new version, or "
            f'interlock release {bench.name} {version} --again --reason "..."'
        )
