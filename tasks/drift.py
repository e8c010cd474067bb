"""Drift of one endpoint: reads a window, compares it with its reference, and has the table decide.

A window is judged once; its line in the journal's trail is what later windows count, so that
k of m survives restarts. Judging it again (by hand) replaces its line. What follows from the
verdict is done by `tasks.drift_actions`. Imports neither Prefect nor MLflow by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.drift import Drift
from evals.drift import compare, enough, report_page
from evals.drift_decision import Action, DriftVerdict, PastWindow, inconclusive, judge
from serving.capture.reader import count_captures
from serving.capture.tables import sample_table
from serving.endpoint import REFUSALS
from serving.errors import Refused, SetupError
from serving.records import EndpointRow, ReleaseRow, Stage
from tasks.bench import Bench
from tasks.drift_harm import known_harm
from tasks.drift_reference import load_reference

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger("interlock.drift")
WINDOW = "drift window"
"""What a judged window's line in the trail is called."""

_SETTLE_S = 5.0
_SEED = 20_261_124


@dataclass(frozen=True, slots=True)
class DriftWindow:
    """One window of one endpoint, judged. `page` is Evidently's HTML, "" where nothing was compared."""

    endpoint: str
    version: str
    starts_at: float
    ends_at: float
    requests: int
    reference: str
    verdict: DriftVerdict
    page: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        mine = {
            name: getattr(self, name)
            for name in ("endpoint", "version", "starts_at", "ends_at", "requests", "reference")
        }
        return mine | self.verdict.as_dict()


def due_window(bench: Bench) -> float | None:
    """When the newest whole window ended that was not judged yet; None where all were."""
    policy = policy_of(bench)
    ends_at = newest_window(policy, bench.clock())
    judged = [past.ends_at for past in past_windows(bench, policy, ends_at=ends_at)]
    return None if ends_at in judged else ends_at


def newest_window(policy: Drift, now: float) -> float:
    """The end of the newest whole window, in seconds since the epoch; windows are aligned to their length."""
    return (now - _SETTLE_S) // policy.window_s * policy.window_s


def policy_of(bench: Bench) -> Drift:
    """The endpoint's drift policy. Raises `Refused` where it has none."""
    if bench.policy.drift is None:
        raise Refused(
            f"{bench.name}: its policy has no `drift` section. Next: add one, see interlock policy-keys"
        )
    return bench.policy.drift


def look_at_window(bench: Bench, ends_at: float) -> DriftWindow:
    """Read, compare and judge one window. Changes nothing."""
    policy, row = policy_of(bench), bench.row()
    since = ends_at - policy.window_s
    if not row.champion:
        return DriftWindow(bench.name, "", since, ends_at, 0, "", inconclusive("it never served"))
    folder = bench.settings.captures_dir / bench.name
    counts = count_captures(folder, since=since, until=ends_at)
    mine = counts[counts["version"] == row.champion]
    requests = int(mine["requests"].sum())
    refused = int(mine.loc[mine["status"].isin(REFUSALS), "requests"].sum())
    table = sample_table(
        folder, since=since, until=ends_at, versions=[row.champion], requests=policy.sample_rows, seed=_SEED
    )
    try:
        reference = load_reference(bench, policy, row.champion, since=since, until=ends_at, seed=_SEED)
    except SetupError as error:
        verdict = inconclusive(str(error), rows=len(table.frame))
        return DriftWindow(bench.name, row.champion, since, ends_at, requests, "", verdict)
    if _only_refusals(policy, refused, requests, len(table.frame)):
        current = table.frame.iloc[:0]
    else:
        current = table.frame
        if problem := enough(policy, len(reference.frame), len(current)):
            verdict = inconclusive(problem, rows=len(current), reference_rows=len(reference.frame))
            return DriftWindow(bench.name, row.champion, since, ends_at, requests, reference.name, verdict)
    release = _recent_release(bench, row)
    verdict = judge(
        policy,
        compare(
            policy,
            reference.frame,
            current,
            refused=refused,
            requests=requests,
            versions=_both_versions(bench, policy, row, release, since=since, until=ends_at),
        ),
        past_windows(bench, policy, ends_at=ends_at),
        ends_at=ends_at,
        version=row.champion,
        reference=reference.name,
        harm=known_harm(bench, row, since=since, until=ends_at),
        recent=_is_recent(bench, row),
        features_changed=_features_changed(bench, policy, row),
    )
    page = report_page(policy, reference.frame, current) if len(current) else ""
    return DriftWindow(bench.name, row.champion, since, ends_at, requests, reference.name, verdict, page)


def past_windows(bench: Bench, policy: Drift, *, ends_at: float) -> list[PastWindow]:
    """What the trail remembers of earlier windows, newest first; the newest line of a window counts."""
    reach = max(policy.m * policy.window_s, policy.retrain_again_s) + policy.window_s
    found: dict[float, PastWindow] = {}
    for line in bench.journal.audit(bench.name, what=(WINDOW,), since=ends_at - reach, limit=5000):
        past = _past(line.details)
        if past.ends_at >= ends_at - reach:
            found.setdefault(past.ends_at, past)
    return list(found.values())


def remember(bench: Bench, window: DriftWindow, *, who: str) -> None:
    """Write the judged window into the trail. An INCONCLUSIVE one is remembered with nothing flagged."""
    verdict = window.verdict
    bench.journal.record(
        bench.name,
        WINDOW,
        who=who,
        now=bench.clock(),
        ends_at=window.ends_at,
        version=window.version,
        reference=window.reference,
        outcome=verdict.outcome.value,
        actions=[action.value for action in verdict.decision.actions],
        flagged=sorted(check.key for check in verdict.flagged),
        alarms=sorted(check.key for check in verdict.alarms),
        rows=verdict.rows,
        requests=window.requests,
        reason=verdict.reason[:500],
    )


def _past(details: Mapping[str, Any]) -> PastWindow:
    return PastWindow(
        ends_at=float(details["ends_at"]),
        version=str(details["version"]),
        reference=str(details["reference"]),
        flagged=frozenset(details["flagged"]),
        retrain_asked=Action.RETRAIN.value in details["actions"],
    )


def _only_refusals(policy: Drift, refused: int, requests: int, rows: int) -> bool:
    """Whether too few rows are left to compare because the version refused the requests."""
    return rows < policy.min_rows <= requests and refused / requests > policy.budgets.refused


def _recent_release(bench: Bench, row: EndpointRow) -> ReleaseRow | None:
    """The open release, else the one that made the champion."""
    release = bench.journal.open_release(bench.name)
    if release is not None:
        return release
    return next(iter(bench.journal.releases(bench.name, version=row.champion)), None)


def _is_recent(bench: Bench, row: EndpointRow) -> bool:
    """Whether the other version is at hand: a candidate with live traffic, or the champion before, warm."""
    release = bench.journal.open_release(bench.name)
    if release is not None:
        return row.release_id == release.id and release.stage in (Stage.CANARY, Stage.PROMOTE)
    return bool(row.other_version) and row.keep_until > bench.clock()


def _both_versions(
    bench: Bench,
    policy: Drift,
    row: EndpointRow,
    release: ReleaseRow | None,
    *,
    since: float,
    until: float,
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """What champion and candidate answered at the same time, while a ramp is under way."""
    if policy.budgets.outputs is None or release is None or release.state.final:
        return None
    folder, since = bench.settings.captures_dir / bench.name, max(since, release.started_at)
    old, new = (
        sample_table(
            folder, since=since, until=until, versions=[version], requests=policy.sample_rows, seed=_SEED
        ).frame
        for version in (row.champion, release.version)
    )
    return (old, new) if min(len(old), len(new)) >= policy.min_rows else None


def _features_changed(bench: Bench, policy: Drift, row: EndpointRow) -> bool:
    """Whether the champion names other feature code than the version before it. Untagged: no.

    While a release is open the other version is its candidate, and the window holds what the champion
    was asked: broken data is not the candidate's doing.
    """
    if not row.other_version or bench.journal.open_release(bench.name) is not None:
        return False
    new, old = (
        bench.registry.version(bench.policy.model, version).tags.get(policy.features_tag, "")
        for version in (row.champion, row.other_version)
    )
    return bool(new and old) and new != old
