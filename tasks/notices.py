"""What Prefect shows of a release: artifacts, and the ramp's progress.

All of it informs people; nothing here can stop or slow a release.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.runtime import flow_run

from evals.verdict import Finding, Verdict
from serving.records import Stage
from tasks.bench import Bench
from tasks.costing import cost_words, release_cost
from tasks.release import Release
from tasks.trail import Aside

_LOG = logging.getLogger("interlock.notices")
_ARTIFACT_EVERY_S = 10.0


def flow_run_id() -> str:
    """The Prefect flow run that this code runs in, "" outside of one."""
    return str(flow_run.id or "")


def flow_run_url(bench: Bench, run_id: str) -> str:
    """Where a person looks at a flow run."""
    return f"{bench.settings.prefect_url.removesuffix('/api')}/runs/flow-run/{run_id}" if run_id else ""


def free_dead_owner(bench: Bench) -> None:
    """End the claim of an open release whose flow run Prefect knows to be over."""
    release = bench.journal.open_release(bench.name)
    if (
        release is None
        or not release.owner
        or not release.flow_run_id
        or release.flow_run_id == flow_run_id()
    ):
        return
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(release.flow_run_id)).state
    except ObjectNotFound:
        return
    if state is not None and state.is_final():
        bench.journal.free(release.id, release.owner)


def verdict(release: Release, stage: Stage, result: Verdict) -> None:
    """A markdown artifact with a stage's verdict, its numbers and the links."""
    bench = release.bench
    lines = [
        f"# {bench.name} v{release.version}: {stage.value} {result.outcome}",
        "",
        result.reason,
        "",
        *([f"What would change it: {result.would_change}.", ""] if result.would_change else []),
        findings_table(result.findings),
        "",
        release_links(release),
    ]
    key = _key(release, stage.value)
    quietly(
        lambda: create_markdown_artifact(key=key, markdown="\n".join(lines), description=result.reason[:300])
    )


def ending(release: Release, name: str, message: str) -> None:
    """A markdown artifact with how the release ended, and a link to its MLflow run."""
    bench = release.bench
    cost = release_cost(bench.journal, release.row, now=bench.clock())
    paid = ["", f"Cost: {cost_words(cost, release.version)}."] if cost else []
    lines = [f"# {bench.name} v{release.version}: {name}", "", message, *paid, "", release_links(release)]
    key = _key(release, "release")
    quietly(lambda: create_markdown_artifact(key=key, markdown="\n".join(lines), description=message[:300]))
    url = release.row.mlflow_url
    if url:
        quietly(
            lambda: create_link_artifact(
                link=url, link_text=f"MLflow run of {release.row.id}", key=f"{key}-run"
            )
        )


def ramp_listener(release: Release) -> Callable[[Mapping[str, Any]], None]:
    """A listener that keeps one artifact of the ramp's progress fresh, aside from the loop."""
    aside = Aside("progress")
    key = _key(release, "progress")
    last = [0.0]

    def listen(progress: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - last[0] < _ARTIFACT_EVERY_S:
            return
        last[0] = now
        rows = [
            f"| {name} | {_plain(value)} |" for name, value in progress.items() if value not in (None, "")
        ]
        text = "\n".join(["| what | now |", "| --- | --- |", *rows])
        aside.offer(lambda: _create_progress(key, text))

    return listen


def _key(release: Release, what: str) -> str:
    """An artifact's key: Prefect allows lower-case letters, digits and dashes, and a pair has a plus."""
    return f"{release.bench.name}-v{release.version.replace('+', '-')}-{what}"


def findings_table(findings: tuple[Finding, ...]) -> str:
    """Findings as a markdown table; empty where there are none."""
    if not findings:
        return ""
    head = "| metric | verdict | candidate | champion | difference | evidence (needed) | units | reason |"
    rows = [
        f"| {found.metric} | {found.outcome} | {_plain(found.candidate)} | {_plain(found.champion)} "
        f"| {_interval(found)} | {_evidence(found)} | {_plain(found.units)} "
        f"| {found.reason} |"
        for found in findings
    ]
    return "\n".join([head, "|" + " --- |" * 8, *rows])


def findings_list(findings: tuple[Finding, ...]) -> str:
    """Findings as a markdown list, where a table is too wide; the reasons have the numbers."""
    return "\n".join(f"- **{found.metric}** {found.outcome}: {found.reason}" for found in findings)


def _evidence(found: Finding) -> str:
    if found.evidence is None and found.needed is None:
        return ""
    return f"{_plain(found.evidence)} ({_plain(found.needed)})"


def _interval(found: Finding) -> str:
    if found.low is None and found.high is None:
        return ""
    return f"{_plain(found.low)} to {_plain(found.high)}"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def release_links(release: Release) -> str:
    """The release's pages in Prefect and MLflow, in markdown."""
    bench, row = release.bench, release.row
    parts = [f"[Flow run]({flow_run_url(bench, row.flow_run_id)})"]
    if row.mlflow_url:
        parts.append(f"[MLflow run]({row.mlflow_url})")
    return "  \n".join(parts)


def _create_progress(key: str, text: str) -> None:
    create_markdown_artifact(key=key, markdown=text)


def quietly(what: Callable[[], Any]) -> None:
    """Run what only informs people; what goes wrong with it is logged."""
    try:
        what()
    except Exception:  # noqa: BLE001 (an artifact informs; a release never fails for it)
        _LOG.warning("artifact not written", exc_info=True)
