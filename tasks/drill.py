"""The drill: release a version that is known to be bad, and prove that it is stopped and all is as before.

It goes the way that users go: a version is registered, the alias `candidate` is set, and the webhook, the
automation, the flow and the gateway do the rest, under synthetic traffic. Only an endpoint whose policy
has a `drill` section is drilled. However it ends, the drill leaves no open release, no candidate and no
key behind; after a kill -9 the key goes with the next drill, and an open release refuses that one.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.drill import Drill, Fault
from configs.loading import load_policies
from evals.canary import TELEMETRY_MISSING
from serving.atomic import timed_lock
from serving.endpoint import Slot
from serving.errors import NotHealthy, Refused, ServingError, TransientError
from serving.gateway.keys import Keys
from serving.journal import Journal
from serving.records import ReleaseRow, ReleaseState, Stage
from tasks import rolling_back
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.drill_traffic import DrillTraffic, traffic
from tasks.drill_versions import FAULT_TAG, register_version
from tasks.registry import CANDIDATE
from tasks.trail import plain_json

_LOG = logging.getLogger("interlock.drill")
DRILLED = "drill"
_WHO = "drill"
_RUN = "drill"
_TENANT = "interlock-drill"
_POLL_S = 0.5
_SETTLE_S = 4.0
_BACK_S = 30.0
_AT_ONCE = frozenset[Fault]({"crash-on-start", "bad-outputs"})
"""Faults that are there from the start; the others begin in the canary."""
_CRASHES = frozenset[Fault]({"crash-on-start", "crash-mid-canary"})
"""Faults that may end a release INTERRUPTED: a crash is no verdict."""


@dataclass(frozen=True, slots=True)
class DrillResult:
    """One rehearsed fault. `problems` is empty where the bad version was stopped and all is back.

    `stage` is where it was stopped, `stopped_s` from the onset of the fault to the end of its release,
    `traffic_s` to the last request that it was given, `failed` how many clients' requests failed meanwhile,
    of `requests`.
    """

    endpoint: str
    fault: str
    version: str
    champion: str
    state: str
    stage: str
    stopped_s: float
    traffic_s: float
    failed: int
    requests: int
    reason: str
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether it was stopped in time, with everything back."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "passed": self.passed}


def next_fault(bench: Bench) -> Fault:
    """The fault whose turn it is: the one that was drilled longest ago."""
    wanted = policy_of(bench).faults
    lines = bench.journal.audit(bench.name, what=(DRILLED,), limit=1000)
    last = {str(line.details["fault"]): line.time for line in reversed(lines)}
    return min(wanted, key=lambda fault: last.get(fault, 0.0))


def chosen_faults(bench: Bench, wanted: Sequence[str], *, every: bool) -> list[Fault]:
    """The faults that a person asks for; without any the one whose turn it is. Raises `Refused`."""
    known = policy_of(bench).faults
    unknown = [one for one in wanted if one not in known]
    if unknown:
        raise Refused(f"{bench.name}: no fault is called {unknown[0]!r}. Its policy has {', '.join(known)}")
    if every or wanted:
        return [one for one in known if every or one in wanted]
    return [next_fault(bench)]


def policy_of(bench: Bench) -> Drill:
    """The endpoint's drill policy. Raises `Refused` for an endpoint that must not be drilled."""
    policy, section = bench.policy, bench.policy.drill
    if section is None:
        raise Refused(
            f"{bench.name} is no drill endpoint: its policy has no `drill` section, and must have "
            "none where real clients call. Next: copy the files of examples/drill beside your policies"
        )
    if policy.platform != "local":
        raise Refused(f"{bench.name}: drills run on the local platform, its policy says {policy.platform}")
    policies, _ = load_policies(bench.settings.policy_folder)
    others = [name for name, one in policies.items() if one.model == policy.model and name != bench.name]
    if others:
        raise Refused(f"{bench.name}: its model {policy.model} is released on {', '.join(others)}, too")
    return section


def run_drill(bench: Bench, fault: Fault) -> DrillResult:
    """Rehearse one fault, keep the result, and alert where the drill failed.

    Raises `Refused` for an endpoint that is none for drills or busy, `ServingError` where it could not be
    rehearsed at all; that alerts as well.
    """
    policy = policy_of(bench)
    with timed_lock(bench.settings.state / "drills" / f"{bench.name}.lock", wait_s=0) as is_mine:
        if not is_mine:
            raise Refused(f"{bench.name} is being drilled. Next: try again later")
        if (release := bench.journal.open_release(bench.name)) is not None:
            raise Refused(f"{bench.name}: {release.id} is open. Next: interlock abort {bench.name}")
        return _drill(bench, policy, fault)


def _drill(bench: Bench, policy: Drill, fault: Fault) -> DrillResult:
    url = f"{bench.settings.gateway_url}/{bench.name}/invocations"
    _revoke_key(bench)  # a drill that was killed has left it
    key = "" if bench.policy.access.public else Keys(bench.settings).create(_tenant(bench))
    switch = bench.settings.state / "drills" / f"{bench.name}-{uuid.uuid4().hex[:8]}"
    try:
        champion = _champion(bench, policy, switch)
        with traffic(url, key, per_s=policy.rate_per_s) as seen:
            result = _rehearse(bench, policy, fault, champion, switch, seen)
    except ServingError as error:
        alert(
            bench,
            "critical",
            f"the drill of {fault} could not be run: {error}",
            numbers={},
            next_step="interlock doctor",
            key=f"drill-{fault}",
        )
        raise
    finally:
        switch.unlink(missing_ok=True)
        _revoke_key(bench)
        _end_release(bench)
    keep(bench, result)
    return result


def _tenant(bench: Bench) -> str:
    """Who the drill's traffic is to the gateway."""
    return f"{_TENANT}-{bench.name}"


def _revoke_key(bench: Bench) -> None:
    keys = Keys(bench.settings)
    if keys.every(_tenant(bench)):
        keys.revoke(_tenant(bench))


def _end_release(bench: Bench) -> None:
    """Abort what the drill has left open (it began with nothing open), and take its candidate back.

    Without the alias no sweep starts the release that never began.
    """
    try:
        if bench.journal.open_release(bench.name) is not None:
            _LOG.info("%s", rolling_back.abort(bench, who=_WHO))
        model = bench.policy.model
        if version := bench.registry.aliased(model, CANDIDATE):
            bench.registry.unpoint(model, CANDIDATE, version)
    except ServingError as error:  # it must not hide why the drill ended
        _LOG.warning("%s: the drill's release may be open still: %s", bench.name, error)


def _champion(bench: Bench, policy: Drill, switch: Path) -> str:
    """The version that serves; a good one is released first where there is none."""
    if not bench.row().champion:
        version = register_version(bench, "", switch)
        bench.registry.point(bench.policy.model, CANDIDATE, version)
        _await(bench, lambda: bench.row().champion == version, policy.timeout_s, "the first champion serves")
    return bench.row().champion


def _rehearse(
    bench: Bench, policy: Drill, fault: Fault, champion: str, switch: Path, seen: DrillTraffic
) -> DrillResult:
    version = register_version(bench, fault, switch)
    began = time.time()
    bench.registry.point(bench.policy.model, CANDIDATE, version)

    def release() -> ReleaseRow | None:
        return next(iter(bench.journal.releases(bench.name, version=version)), None)

    if fault not in _AT_ONCE:
        what = f"the release of {fault} is in its canary"
        _await(bench, lambda: _ramping(release()) or _is_over(release()), policy.timeout_s, what)
        if (early := release()) is not None and _is_over(early):
            raise NotHealthy(
                f"{early.id} ended as {early.state} before its canary: {early.reason}; no fault began"
            )
        began = time.time()
        switch.touch()
    else:
        _await(bench, lambda: release() is not None, policy.timeout_s, f"the release of {fault} began")
        began = time.time()
    patience_s = policy.stopped_within_s if fault not in _AT_ONCE else policy.timeout_s
    _waited(bench, lambda: _is_over(release()), patience_s)
    stopped_s = time.time() - began
    ended = release()
    assert ended is not None
    if not ended.state.final:
        rolling_back.abort(bench, who=_WHO)
    switch.unlink(missing_ok=True)
    after = time.time()
    _waited(bench, lambda: _is_back(bench, champion), _BACK_S)
    time.sleep(_SETTLE_S)
    given = [one.time for one in seen.since(began) if one.version == version]
    answers = seen.since(began)
    return DrillResult(
        endpoint=bench.name,
        fault=fault,
        version=version,
        champion=champion,
        state=ended.state.value,
        stage=ended.decided_stage or ended.stage.value,
        stopped_s=round(stopped_s, 1),
        traffic_s=round(max(given, default=began) - began, 1),
        failed=sum(one.status != 200 for one in answers),
        requests=len(answers),
        reason=ended.reason,
        problems=tuple(_problems(bench, fault, ended, champion, seen, after, stopped_s)),
    )


def _ramping(release: ReleaseRow | None) -> bool:
    """Whether the canary has looked at live traffic."""
    return release is not None and release.stage is Stage.CANARY and release.progress.get("look", 0) >= 2


def _is_over(release: ReleaseRow | None) -> bool:
    """Whether the release has ended, for good or for a person to see; before its claim it has no reason."""
    if release is None or release.state is ReleaseState.RUNNING:
        return False
    return release.state.final or (bool(release.reason) and not release.owner)


def _is_back(bench: Bench, champion: str) -> bool:
    row = bench.row()
    live = bench.endpoint.describe()
    return (
        row.champion == champion
        and row.share_bp == 0
        and row.intent is None
        and live.route is not None
        and live.route.share_bp == 0
        and not live.versions.get(row.default.sibling)
    )


def _problems(
    bench: Bench,
    fault: Fault,
    ended: ReleaseRow,
    champion: str,
    seen: DrillTraffic,
    after: float,
    stopped_s: float,
) -> list[str]:
    """All that is not as it must be, in words."""
    found: list[str] = []
    row, live = bench.row(), bench.endpoint.describe()
    if ended.state is ReleaseState.PROMOTED:
        found.append(f"version {ended.version} was promoted")
    elif ended.state is ReleaseState.RUNNING:
        found.append(f"not stopped within {stopped_s:.0f} s; the drill aborted it")
    elif not _is_found_out(fault, ended):
        found.append(f"its release ended {ended.state}, it must be REJECTED: {ended.reason}")
    if row.champion != champion:
        found.append(f"version {row.champion or 'none'} serves, not {champion}")
    if live.route is None or live.route.share_bp:
        found.append("the gateway still gives the other slot a share")
    if live.versions.get(row.default.sibling):
        found.append(f"version {live.versions[row.default.sibling]} still has a slot")
    healthy = [one for slot in Slot if slot is row.default for one in live.replicas.get(slot, ())]
    if not healthy or not all(one.healthy for one in healthy):
        found.append("the champion's replicas are not all healthy")
    if ended.state is ReleaseState.REJECTED and bench.registry.aliased(bench.policy.model, CANDIDATE):
        found.append("the alias candidate was not removed")
    late = [one for one in seen.since(after + 1) if (one.status, one.version) != (200, champion)]
    if late:
        found.append(f"{len(late)} requests after the end were not answered well by the champion")
    if not seen.since(after + 1):
        found.append("no traffic reached the gateway after the end")
    return found


def _is_found_out(fault: Fault, ended: ReleaseRow) -> bool:
    """Whether the release ended as the fault deserves: rejected, but for what is no verdict."""
    if fault in _CRASHES and ended.state is ReleaseState.INTERRUPTED:
        return True
    if fault == "lost-telemetry" and ended.state is ReleaseState.HELD:
        return TELEMETRY_MISSING in ended.reason
    return ended.state is ReleaseState.REJECTED


def keep(bench: Bench, result: DrillResult) -> None:
    """The record: trail, tags, MLflow; then people, where it failed."""
    values = {name: value for name, value in result.as_dict().items() if name != "endpoint"}
    now = bench.clock()
    bench.journal.record(bench.name, DRILLED, who=_WHO, now=now, **values)
    if not result.passed:
        alert(
            bench,
            "critical",
            f"the drill failed: {result.fault}, version {result.version}: {'; '.join(result.problems)}",
            numbers={"stopped_s": result.stopped_s, "failed": float(result.failed)},
            next_step=f"interlock history {bench.name} --audit",
            key=f"drill-{result.fault}",
        )
    try:
        bench.registry.tag(bench.policy.model, result.version, {FAULT_TAG: result.fault})
        run_id = bench.runs.open_run(bench.name, f"{bench.name}-{_RUN}", {"interlock.kind": _RUN})
        numbers = {
            "passed": float(result.passed),
            "stopped_s": result.stopped_s,
            "traffic_s": result.traffic_s,
            "failed_requests": float(result.failed),
        }
        bench.runs.log_points(
            run_id,
            [
                (f"drill/{result.fault}/{name}", value, int(now * 1000), int(now))
                for name, value in numbers.items()
            ],
        )
        bench.runs.log_text(run_id, f"drills/{int(now)}-{result.fault}.json", plain_json(result.as_dict()))
    except ServingError as error:
        _LOG.warning("%s: the drill's record is not in MLflow: %s", bench.name, error)


def past_drills(bench: Bench, *, limit: int = 20) -> list[dict[str, Any]]:
    """The last results, newest first."""
    with closing(Journal(bench.settings.journal)) as journal:
        lines = journal.audit(bench.name, what=(DRILLED,), limit=limit)
    return [{"time": line.time, **line.details} for line in lines]


def words(result: DrillResult) -> str:
    """A result in one line."""
    how = f"{result.state} at {result.stage} {result.stopped_s:.0f} s after the onset"
    clients = f"{result.failed} of {result.requests} requests failed"
    if result.passed:
        return f"{result.endpoint}: {result.fault} was stopped ({how}; {clients}), everything is back"
    return (
        f"{result.endpoint}: {result.fault} FAILED the drill: {'; '.join(result.problems)} ({how}; {clients})"
    )


def _await(bench: Bench, condition: Callable[[], bool], wait_s: float, what: str) -> None:
    if not _waited(bench, condition, wait_s):
        raise NotHealthy(
            f"{bench.name}: not within {wait_s:.0f} s: {what}. Next: interlock status {bench.name}"
        )


def _waited(bench: Bench, condition: Callable[[], bool], wait_s: float) -> bool:
    deadline = bench.clock() + wait_s
    while not _holds(condition):
        if bench.clock() > deadline:
            return False
        bench.sleep(_POLL_S)
    return True


def _holds(condition: Callable[[], bool]) -> bool:
    """What cannot be asked now (the gateway reloads, a database is busy) does not hold yet."""
    try:
        return condition()
    except TransientError as error:
        _LOG.info("asked again in a moment: %s", error)
        return False
