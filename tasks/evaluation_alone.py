"""The gate without a release: the same evaluation, which changes nothing but an MLflow run of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from configs.settings import Settings
from evals.verdict import Verdict
from tasks.bench import Bench
from tasks.evaluation import Subject, evaluate_version, log_pages, numbers_of
from tasks.held_out import policy_of


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What was found, for the terminal; `page` is the verdict's HTML."""

    endpoint: str
    version: str
    champion: str
    verdict: Verdict
    rows: int
    digest: str
    mlflow_url: str
    page: str

    @property
    def outcome(self) -> str:
        """PASS, FAIL, INCONCLUSIVE or ERROR."""
        return self.verdict.outcome.value

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("endpoint", "version", "champion", "rows", "digest", "mlflow_url")
        return {name: getattr(self, name) for name in names} | {"verdict": self.verdict.as_dict()}


def evaluate_alone(
    settings: Settings,
    endpoint: str,
    version: str,
    *,
    tell: Callable[[Mapping[str, Any]], object],
) -> EvaluationReport:
    """Evaluate a version against the endpoint's champion, under the policy file as it is now.

    Raises `Refused` for endpoints whose versions are judged by prompts, `SetupError` for data that
    cannot be read.
    """
    bench = Bench.open(endpoint, settings)
    policy_of(bench)
    bench.registry.version(bench.policy.model, version)
    champion = bench.row().champion
    name = f"{endpoint}-v{version}-evaluation-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(bench.clock()))}"
    tags = {"interlock.endpoint": endpoint, "interlock.version": version, "interlock.champion": champion}
    run_id = bench.runs.open_run(endpoint, name, tags)
    subject = Subject(
        bench=bench,
        version=version,
        champion="" if champion == version else champion,
        tell=tell,
        check=lambda: None,
        run_id=run_id,
    )
    status = "FAILED"
    outcome = "interrupted"
    try:
        evaluated = evaluate_version(subject)
        now_ms = int(bench.clock() * 1000)
        numbers = [numbers_of(finding) for finding in evaluated.verdict.findings]
        points = [(key, value, now_ms, 0) for found in numbers for key, value in found.items()]
        bench.runs.log_points(run_id, points)
        tell({"doing": "drawing the report"})
        told = log_pages(subject, evaluated)
        status, outcome = "FINISHED", evaluated.verdict.outcome.lower()
    finally:
        bench.runs.close_run(run_id, status=status, tags={"interlock.outcome": outcome})
        tell({"doing": ""})
    return EvaluationReport(
        endpoint,
        version,
        subject.champion,
        evaluated.verdict,
        len(evaluated.held_out.labels),
        evaluated.held_out.digest,
        bench.runs.run_url(run_id),
        told,
    )
