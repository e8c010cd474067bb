"""The documents of a finished run: `decisions.json` for machines, `report.html` for people.

Both are made from the journal alone (latency plots also read the access log), so they can be
made again at any time.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from configs.environments import STAGING, policy_in
from evals.canary import Look, replay
from evals.looks import LatencyThresholds, StoredLook
from serving.errors import ServingError
from serving.records import LookRow, Stage
from tasks.costing import release_cost
from tasks.load_run import budget_of
from tasks.plots import BOUND, CANDIDATE, CHAMPION, INK, number_words, page, plain_axes, svg
from tasks.release import Release
from tasks.replaying import KEPT
from tasks.trail import REPORT, plain_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger("interlock.documents")
_EVIDENCE_TEXT = (
    "Above: the candidate's share. Below: the evidence for rolling back (red), and the weakest of the proofs "
    "that promotion requires (blue), each with the level at which it decides. Looking is free: the levels "
    "hold at every look."
)
_LATENCY_TEXT = (
    "Share of requests that took at most this long in the replica, over the whole ramp. The two versions "
    "carried different shares of the load; the tests compare them within each share."
)
_LOAD_TEXT = (
    "What clients waited on the staging endpoint, from the moment that a request was due, at each rate that "
    "was tried. Dotted: the budgets."
)


def write_documents(release: Release) -> None:
    """Log the release's documents with its MLflow run. Informs only: failures are logged."""
    release.trail.document("decisions.json", plain_json(decisions(release)))
    try:
        release.trail.document(REPORT, report(release))
    except (ServingError, ValueError, KeyError) as error:
        _LOG.warning("the report could not be drawn: %s", error)


def decisions(release: Release) -> dict[str, Any]:
    """Everything that the release decided and what it decided from; no ids of users or requests."""
    row, journal = release.row, release.bench.journal
    return {
        "release": row.id,
        "endpoint": row.endpoint,
        "version": row.version,
        "champion": row.champion,
        "state": row.state.value,
        "reason": row.reason,
        "decided_at": row.decided_at,
        "decided_stage": row.decided_stage,
        "policy": release.bench.policy.model_dump(mode="json"),
        "verdicts": dict(row.verdicts),
        "cost": release_cost(journal, row, now=release.bench.clock()),
        "looks": {
            stage: [{"number": look.number, "time": look.time, **look.stats} for look in looks]
            for stage in KEPT
            if (looks := journal.looks(row.id, stage))
        },
    }


def replayed_looks(release: Release) -> tuple[list[LookRow], list[Look]]:
    """The stored looks of the canary, and what the judge says of them now: the same, or a bug.

    Only those since the canary last began: against another champion it began anew.
    """
    every = release.bench.journal.looks(release.row.id, Stage.CANARY.value)
    begun = [index for index, look in enumerate(every) if "thresholds" in look.stats]
    if not begun:
        return [], []
    head, *rest = every[begun[-1] :]
    thresholds = LatencyThresholds.from_dict(head.stats["thresholds"])
    stored = [StoredLook.from_dict(look.stats) for look in rest]
    canary = release.bench.policy.canary
    return rest, replay(canary, thresholds, stored, quality=canary.quality is not None)


def report(release: Release) -> str:
    """The release as one HTML page with its plots inside."""
    row, bench = release.row, release.bench
    audit = [line for line in bench.journal.audit(bench.name, limit=500) if line.release_id == row.id]
    return page(
        "report.html.j2",
        release=row,
        outcome=row.state.value,
        owner=bench.policy.owner,
        started=_clock(row.started_at),
        decided=_clock(row.decided_at) if row.decided_at else "",
        verdicts=list(row.verdicts.items()),
        cost=release_cost(bench.journal, row, now=bench.clock()),
        plots=_plots(release),
        audit=[
            {"time": _clock(line.time), "what": line.what, "who": line.who, "details": _details(line.details)}
            for line in reversed(audit)
        ],
    )


def _plots(release: Release) -> list[tuple[str, str, str]]:
    plots: list[tuple[str, str, str]] = []
    load = _load_figure(release)
    if load is not None:
        plots.append(("What staging bore", svg(load), _LOAD_TEXT))
    stored, looks = replayed_looks(release)
    if not looks:
        return plots
    plots.append(("The ramp and its evidence", svg(_evidence_figure(release, stored, looks)), _EVIDENCE_TEXT))
    latencies = _latency_figure(release)
    if latencies is not None:
        plots.append(("Service time of the two versions", svg(latencies), _LATENCY_TEXT))
    return plots


def _load_figure(release: Release) -> Figure | None:
    """Latency by rate, with the budgets as lines; the expected rate was tried first."""
    from matplotlib.figure import Figure

    tried = [look.stats for look in release.bench.journal.looks(release.row.id, Stage.STAGE.value)]
    if not tried:
        return None
    expected, steps = tried[0]["rate"], sorted(tried, key=lambda step: step["rate"])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    budgets = budget_of(policy_in(release.bench.policy, STAGING)).model_dump()
    for name, color in (("p50", INK), ("p95", CHAMPION), ("p99", CANDIDATE)):
        points = [(step["rate"], step[name]) for step in steps if step[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", color=color, label=name)
        if budgets[name] is not None:
            axes.axhline(budgets[name], color=color, linewidth=0.8, linestyle=":")
    axes.axvline(expected, color=BOUND, linewidth=0.8, label="expected rate")
    axes.set_yscale("log")
    axes.set_xlabel("requests a second")
    axes.set_ylabel("ms since due")
    axes.legend(frameon=False, loc="upper left")
    return plain_axes(figure)


def _evidence_figure(release: Release, stored: list[LookRow], looks: list[Look]) -> Figure:
    from matplotlib.figure import Figure

    canary = release.bench.policy.canary
    start = stored[0].time
    seconds = [row.time - start for row in stored]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2.2])
    above.step(
        seconds, [canary.steps[int(row.stats["step"])] for row in stored], where="post", color=CANDIDATE
    )
    above.set_ylabel("share, %")
    above.set_ylim(0, 100)
    below.plot(
        seconds,
        [look.numbers["evidence_log10/rollback"] for look in looks],
        color=CANDIDATE,
        label="evidence for rollback",
    )
    below.plot(
        seconds,
        [look.numbers["evidence_log10/promote"] for look in looks],
        color=CHAMPION,
        label="weakest proof for promotion",
    )
    import math

    for level, color in ((1 / canary.false_rollback, CANDIDATE), (1 / canary.false_promote, CHAMPION)):
        below.axhline(math.log10(level), color=color, linewidth=0.8, linestyle=":")
    below.set_ylabel("evidence, log10 E")
    below.set_xlabel("seconds since the canary began")
    below.legend(frameon=False, loc="best")
    return plain_axes(figure)


def _latency_figure(release: Release) -> Figure | None:
    """Empirical distribution functions, from at most 20,000 requests a version."""
    import numpy as np
    from matplotlib.figure import Figure

    if not release.bench.endpoint.capabilities.per_request_observations:
        return None  # there are only counts; the looks have them
    looks = release.bench.journal.looks(release.row.id, Stage.CANARY.value)
    frame = release.bench.endpoint.observations(looks[0].cursor_to).frame
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    drawn = 0
    for version, color in ((release.row.champion, CHAMPION), (release.version, CANDIDATE)):
        service = frame.loc[
            (frame["version"] == version) & (frame["service_ms"] > 0), "service_ms"
        ].to_numpy()
        if len(service) < 20:
            continue
        values = np.sort(service[:: max(1, len(service) // 20_000)])
        axes.step(
            values,
            np.arange(1, len(values) + 1) / len(values),
            color=color,
            label=f"v{version}",
            where="post",
        )
        drawn += 1
    if drawn < 2:
        return None
    axes.set_xscale("log")
    axes.set_xlabel("service time, ms")
    axes.set_ylabel("share of requests")
    axes.legend(frameon=False, loc="lower right")
    return plain_axes(figure)


def _details(details: Any) -> str:
    return ", ".join(
        f"{key}: {number_words(value)}" for key, value in details.items() if value not in ("", None)
    )


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
