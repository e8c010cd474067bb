"""The offline gate's order: read the held-out rows, score both versions, ask `evals.gate`.

Three steps with a seam between each: `tasks.held_out` (rows), `tasks.scoring` (answers), and the
verdict, to which guards and evaluators add findings of their own. A release's stage and the
command `interlock evaluate` run the same `evaluate_version`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.evaluation import Evaluation
from configs.generation import Generation
from evals.gate import Scores
from evals.gate import evaluate as decide
from evals.labels import judge_labels, note_missing
from evals.metrics import MORE_IS_BETTER, CustomMetric, MetricError, Predictions, is_known
from evals.verdict import Finding, Outcome, Verdict, conclude
from serving.errors import SetupError
from tasks.bench import Bench
from tasks.evaluation_report import DATA_PAGE, PAGE, data_page, verdict_page
from tasks.evaluators import run_evaluators
from tasks.generation import evaluate_answers
from tasks.guards import guard_live, guard_rows
from tasks.held_out import HeldOut, policy_of, read_held_out
from tasks.release import Release
from tasks.scoring import ModelFault, candidate_answers, champion_answers
from tasks.signatures import note_signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOG = logging.getLogger("interlock.evaluation")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated, for whom: a version, and the champion that it is compared with ("" for none).

    `tell` hears the newest numbers for people, `check` raises where the work must stop. `run_id` is
    the MLflow run that evidence is logged to, "" for none; `release_id` "" outside of a release.
    """

    bench: Bench
    version: str
    champion: str
    tell: Callable[[Mapping[str, Any]], object]
    check: Callable[[], object]
    run_id: str = ""
    release_id: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A verdict with what it rests on; `scores` is None where the versions were not scored."""

    verdict: Verdict
    held_out: HeldOut
    scores: Scores | None = None


def evaluate_candidate(release: Release) -> Verdict:
    """A release's evaluation: its verdict, with numbers and pages in the release's MLflow run.

    A language model's answers are judged where it was placed (`tasks.generation`), all others here.
    """
    generation = release.bench.policy.evaluation
    if isinstance(generation, Generation):
        return evaluate_answers(release, generation)
    subject = Subject(
        bench=release.bench,
        version=release.version,
        champion=release.row.champion,
        tell=release.progress,
        check=release.check,
        run_id=release.row.mlflow_run_id,
        release_id=release.row.id,
    )
    evaluated = evaluate_version(subject)
    now = release.bench.clock()
    for finding in evaluated.verdict.findings:
        release.trail.numbers(numbers_of(finding), now=now, step=0)

    # Drawing takes seconds, Evidently's import alone six: the release does not wait for it.
    release.draw_later(lambda: log_pages(subject, evaluated))
    return evaluated.verdict


def log_pages(subject: Subject, evaluated: Evaluated) -> str:
    """Draw the pages of an evaluation and log them with its run. Returns the verdict's page."""
    policy = policy_of(subject.bench)
    data = ""
    if policy.data_page and subject.run_id:
        data = data_page(policy, evaluated.held_out, evaluated.scores)
    told = verdict_page(
        policy,
        evaluated.verdict,
        evaluated.held_out,
        evaluated.scores,
        endpoint=subject.bench.name,
        version=subject.version,
        champion=subject.champion,
        now=subject.bench.clock(),
        has_data_page=bool(data),
    )
    for name, text in ((PAGE, told), (DATA_PAGE, data)):
        if text and subject.run_id:
            subject.bench.runs.log_text(subject.run_id, name, text)
    return told


def evaluate_version(subject: Subject) -> Evaluated:
    """Score candidate and champion on the same held-out rows and decide.

    A candidate that raises on them, or answers what is no number, FAILs. Data that cannot be
    read raises `SetupError`: that is nobody's fault but the set-up's.
    """
    bench, policy = subject.bench, policy_of(subject.bench)
    functions = custom_metrics(policy)
    held_out = read_held_out(bench, lambda read, total: _tell_rows(subject, read, total, "reading"))
    _LOG.info("%s: %d held-out rows, digest %s", bench.name, len(held_out.labels), held_out.digest[:12])
    unfit = judge_labels(policy, held_out.all_labels)
    if unfit is not None:
        return Evaluated(Verdict(unfit.outcome, unfit.reason, (unfit,)), held_out)
    subject.tell({"rows": len(held_out.labels), "doing": "checking the rows: age, leakage, signature"})
    guards = list(guard_rows(bench, subject.version, subject.champion, held_out))
    subject.tell({"rows": len(held_out.labels), "doing": f"loading version {subject.version}"})
    try:
        ours, our_ms = _candidate(subject, held_out)
    except ModelFault as fault:
        reason = f"version {subject.version} {fault}"
        finding = Finding(
            "answers", Outcome.FAIL, f"{reason}. Next: mend the model; it would fail live as well"
        )
        return Evaluated(conclude((finding, *guards)), held_out)
    theirs, their_ms = None, np.zeros(0)
    if subject.champion:
        theirs, their_ms = champion_answers(
            bench,
            subject.champion,
            held_out,
            lambda done: _tell_scored(subject, subject.champion, done, held_out),
        )
    labels = held_out.labels
    try:
        scores = Scores(
            labels=labels,
            candidate=Predictions.read(ours, labels, policy.task),
            champion=None if theirs is None else Predictions.read(theirs, labels, policy.task),
            rows=held_out.rows,
            groups=held_out.rows[policy.group].to_numpy() if policy.group else None,
            candidate_ms=our_ms,
            champion_ms=their_ms,
            digest=held_out.digest,
            functions=functions,
        )
    except MetricError as error:
        return Evaluated(conclude((Finding("answers", Outcome.ERROR, str(error)), *guards)), held_out)
    subject.tell({"rows": len(labels), "doing": "comparing with live traffic"})
    others = [*guards, *guard_live(bench, subject.champion, held_out, scores.champion)]
    if (noted := note_missing(policy, held_out.all_labels)) is not None:
        others.append(noted)
    if policy.evaluators and subject.run_id:
        subject.tell({"rows": len(labels), "doing": "MLflow's evaluators"})
        others += run_evaluators(bench.runs, subject.run_id, policy, scores)
    subject.tell({"rows": len(labels), "doing": "deciding: thresholds, intervals, slices"})
    return Evaluated(decide(policy, scores, others), held_out, scores)


def custom_metrics(policy: Evaluation) -> dict[str, CustomMetric]:
    """The policy's metrics that are dotted callables, imported. Raises `SetupError`."""
    found: dict[str, CustomMetric] = {}
    for metric in policy.metrics:
        if is_known(metric.name):
            continue
        module, _, attribute = metric.name.rpartition(".")
        try:
            found[metric.name] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise SetupError(
                f"evaluation.metrics: {metric.name!r} is neither built in nor a callable "
                f"that can be imported ({error}). Built in: {', '.join(MORE_IS_BETTER)}, ndcg@K. "
                "Next: correct the name in the policy"
            ) from error
    return found


def _candidate(subject: Subject, held_out: HeldOut) -> tuple[NDArray[Any], NDArray[np.float64]]:
    bench = subject.bench
    uri = bench.registry.version(bench.policy.model, subject.version).uri
    model = bench.runs.load_model(uri)
    if subject.release_id:
        note_signature(bench, subject.release_id, subject.version, model)
    return candidate_answers(
        policy_of(bench),
        model,
        held_out,
        lambda done: _tell_scored(subject, subject.version, done, held_out),
    )


def _tell_rows(subject: Subject, read: int, total: int | None, doing: str) -> None:
    subject.check()
    of = f" of {total}" if total else ""
    subject.tell({"rows": read, "doing": f"{doing} held-out rows, {read}{of}"})


def _tell_scored(subject: Subject, version: str, done: int, held_out: HeldOut) -> None:
    subject.check()
    rows = len(held_out.labels)
    subject.tell({"rows": done, "doing": f"scoring version {version}, {done} of {rows} rows"})


def numbers_of(finding: Finding) -> dict[str, float]:
    """What is logged of a finding: metric names by who."""
    values = {"candidate": finding.candidate, "champion": finding.champion}
    return {
        f"evaluate/{finding.metric}/{who}".replace("=", "_"): value
        for who, value in values.items()
        if value is not None
    }
