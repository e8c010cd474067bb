"""What people are told at each turn of a release. Which words, how urgent, and what to do next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from evals.canary import TELEMETRY_MISSING
from evals.verdict import Verdict
from serving.records import ReleaseRow, ReleaseState, Stage
from tasks.alerts import alert
from tasks.bench import Bench

if TYPE_CHECKING:
    from tasks.changes import Change


def decided(bench: Bench, change: Change) -> None:
    """A promotion, a rejection, an abort or a rollback: told once, by whoever sees it done first."""
    key = f"{change.state.lower()} {change.release_id or change.loser} {change.decided_at:.3f}"
    release, name = bench.journal.release(change.release_id), bench.name
    numbers = {"decided_at_stage": change.stage}
    if release is not None:
        numbers["took_s"] = str(round(change.decided_at - release.started_at))
    if change.state == ReleaseState.PROMOTED:
        what = f"version {change.winner} is the champion: {change.reason}"
        alert(bench, "info", what, numbers=numbers, next_step=f"interlock status {name}", key=key, once=True)
    elif change.state == ReleaseState.ABORTED:
        what = f"the release of version {change.loser} ended without a verdict: {change.reason}"
        again = f"interlock release {name} {change.loser} runs it anew"
        alert(bench, "info", what, numbers=numbers, next_step=again, key=key, once=True)
    else:
        _taken_back(bench, change, numbers, key)


def made_safe(bench: Bench, release: ReleaseRow, state: ReleaseState, reason: str) -> None:
    """A release stopped without a verdict. Traffic is the champion's; a person or a new run goes on."""
    name, version = bench.name, release.version
    next_step = f"interlock resume {name}, or interlock abort {name}"
    if TELEMETRY_MISSING in reason:  # resumed, it would end at once again: these records stay incomplete
        next_step = f"mend that, then interlock abort {name}, and interlock release {name} {version} anew"
    waits = "is on hold" if state is ReleaseState.HELD else "was interrupted"
    alert(
        bench,
        "warning",
        f"the release of version {version} {waits} at share 0: {reason}",
        numbers={"stage": release.stage.value, "serving": release.champion or "nothing"},
        next_step=next_step,
        key=f"{state.value.lower()} {release.id} {release.stage.value}",
    )


def asked_for_approval(bench: Bench, release: ReleaseRow, verdict: Verdict, *, timeout_s: float) -> None:
    """People are asked; nothing goes on without them."""
    name = bench.name
    alert(
        bench,
        "warning",
        f"version {release.version} {verdict.reason}",
        numbers={"no_answer_is_a_no_after_s": round(timeout_s)}
        | {f"stage {stage}": stored["outcome"] for stage, stored in release.verdicts.items()},
        next_step=f'interlock approve {name} --reason "...", or interlock reject {name} --reason "..."',
        key=f"approval {release.id} {release.flow_run_id}",
        once=True,
    )


def approved(bench: Bench, release: ReleaseRow, words: str) -> None:
    """People said yes; a no is told as the rejection that it is."""
    alert(
        bench,
        "info",
        f"version {release.version} was {words}",
        numbers={},
        next_step=f"interlock status {bench.name}",
        key=f"approved {release.id}",
        once=True,
    )


def stalled(bench: Bench, release: ReleaseRow, verdict: Verdict, *, stalled_s: float, share: float) -> None:
    """A step of the ramp has been undecided for long. It never passes by itself."""
    alert(
        bench,
        "warning",
        f"version {release.version} waits at {share:g}% for evidence: {verdict.reason}",
        numbers={"waits_s": round(stalled_s), "units_to_go": verdict.eta_units or "unknown"},
        next_step=f"wait for traffic, or interlock abort {bench.name}",
        key=f"stalled {release.id} {share:g}",
    )


def _taken_back(bench: Bench, change: Change, numbers: dict[str, str], key: str) -> None:
    """Off the road by evidence or by a person; the communication goes out where users had been on it."""
    policy = bench.policy
    next_step = (
        f"interlock history {bench.name} --audit, then mend version {change.loser} and register it anew"
    )
    users_saw_it = change.state == ReleaseState.ROLLED_BACK or change.stage == Stage.CANARY.value
    what = f"version {change.loser} was rejected: {change.reason}"
    if users_saw_it:
        what = policy.notify.rollback.text.format(
            endpoint=bench.name,
            model=policy.model,
            was=change.loser,
            now=change.winner,
            stage=change.stage,
            reason=change.reason,
            who=change.who,
            owner=policy.owner,
            time=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(change.decided_at)),
            link=bench.settings.prefect_url.removesuffix("/api"),
        )
    alert(
        bench,
        # a promoted version that has to go is an incident, a candidate that failed is the system at work
        "critical" if change.state == ReleaseState.ROLLED_BACK else "warning",
        what,
        numbers=numbers | ({"serving": change.winner} if change.winner else {}),
        next_step=next_step,
        key=key,
        once=True,
        also=policy.notify.rollback.to if users_saw_it else (),
    )
