"""The drift flow's tasks: one endpoint each, with what Prefect shows of it."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from configs.settings import Settings
from serving.errors import TransientError
from tasks.bench import Bench
from tasks.drift_actions import DriftReport, check_drift, table_rows
from tasks.notices import quietly


def endpoints_with_drift(settings: Settings) -> list[str]:
    """Endpoints whose policy has a `drift` section, and those whose policy cannot be read: those fail."""
    from configs.loading import load_policies

    policies, errors = load_policies(settings.policy_folder)
    broken = [error.path.stem for error in errors]
    return sorted([name for name, policy in policies.items() if policy.drift is not None] + broken)


def _worth_retrying(_task: object, _run: object, state: object) -> bool:
    return isinstance(state.result(raise_on_failure=False), TransientError)  # type: ignore[attr-defined]


@task(
    name="drift",
    task_run_name="drift {endpoint}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=_worth_retrying,
)
def check_endpoint(endpoint: str, again: bool = False) -> str:
    """Judge an endpoint's newest whole window, unless it was judged before."""
    report = check_drift(Bench.open(endpoint), again=again)
    if report is None:
        return f"{endpoint}: the newest window was judged before"
    quietly(lambda: _show(report))
    return words(report)


def words(report: DriftReport) -> str:
    """A report in one line."""
    window = report.window
    done = f"; {'; '.join(report.done)}" if report.done else ""
    return f"{window.endpoint} v{window.version}: {window.verdict.outcome}, {window.verdict.reason}{done}"


def _show(report: DriftReport) -> None:
    window, verdict = report.window, report.window.verdict
    key = f"{window.endpoint}-drift"
    create_table_artifact(key=key, table=table_rows(verdict.checks), description=words(report)[:1000])
    compared = f"compared with {verdict.reference_rows:,} rows ({window.reference or 'no reference'})"
    lines = [
        f"# Drift of {window.endpoint} v{window.version}: {verdict.outcome}",
        "",
        verdict.reason,
        "",
        f"Decision: **{', '.join(verdict.decision.actions)}** ({verdict.decision.row})",
        *(f"- {line}" for line in report.done),
        "",
        f"{verdict.rows:,} rows of {window.requests:,} requests, {compared}.",
        *(f"- {note}" for note in verdict.notes),
        "",
        f"[Evidently's report and the scores over time]({report.mlflow_url})" if report.mlflow_url else "",
    ]
    create_markdown_artifact(
        key=f"{key}-decision", markdown="\n".join(lines), description=verdict.reason[:300]
    )
