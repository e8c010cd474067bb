"""The gate's guards, with what they need read: training data, signatures, captures, live labels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.guards import (
    LEAKAGE,
    judge_age,
    judge_leakage,
    judge_live,
    judge_signature,
    newest_time,
    warn,
)
from evals.metrics import Predictions
from evals.verdict import Finding, Outcome
from serving.capture.tables import PREDICTION, sample_table
from serving.errors import ServingError, TransientError
from serving.labels import LabelBook
from serving.table_scan import scan_table
from tasks.bench import Bench
from tasks.held_out import HeldOut, policy_of, row_hashes
from tasks.signatures import signature_break

if TYPE_CHECKING:
    import pandas as pd

_TRAINING_ROWS_MAX = 2_000_000
_LIVE_ROWS_MAX = 5_000
_SEED = 20_261_126


def guard_rows(bench: Bench, version: str, champion: str, held_out: HeldOut) -> Iterator[Finding]:
    """What can be said before any version has scored a row: age, leakage, signature."""
    policy = policy_of(bench)
    if policy.fresh is not None:
        column = policy.fresh.column
        newest = held_out.modified_at if column is None else newest_time(held_out.rows[column])
        yield judge_age(policy.fresh, newest, bench.clock())
    if policy.leakage.check:
        yield _leakage(bench, version, held_out, is_champion=False)
        if champion:
            yield _leakage(bench, champion, held_out, is_champion=True)
    if champion:
        yield judge_signature(_broken(bench, version, champion), allowed=policy.allow_signature_change)


def guard_live(
    bench: Bench, champion: str, held_out: HeldOut, answers: Predictions | None
) -> Iterator[Finding]:
    """Labels and the champion's answers on the held-out rows against live traffic. Informs only."""
    policy = policy_of(bench)
    if not champion or answers is None:
        return
    since = bench.clock() - policy.live.reach_s
    with closing(LabelBook(bench.settings.journal)) as book:
        labels = book.recent(bench.name, version=champion, since=since, limit=_LIVE_ROWS_MAX)
    if labels:
        yield judge_live(policy.live, "labels", held_out.labels.tolist(), [label.label for label in labels])
    table = sample_table(
        bench.settings.captures_dir / bench.name,
        since=since,
        until=bench.clock(),
        versions=[champion],
        requests=_LIVE_ROWS_MAX,
        seed=_SEED,
    )
    live = _live_answers(table.frame)
    said = next(part for part in answers.parts if part is not None)
    if said.ndim == 2:
        said, live = (
            np.argmax(said, axis=1),
            np.argmax(live, axis=1) if live.ndim == 2 and len(live) else live,
        )
    yield judge_live(policy.live, "answers of the champion", said.tolist(), live.tolist())


def training_frame(bench: Bench, version: str, artifact: str) -> tuple[pd.DataFrame | None, int, str]:
    """A version's logged training data (a sample of a very large one), its size, and where it was found.

    None with the reason where the version's run has none that can be read.
    """
    run_id = bench.registry.version(bench.policy.model, version).run_id
    if not run_id:
        return None, 0, f"version {version} was registered without a run"
    with tempfile.TemporaryDirectory(prefix="interlock-training-") as folder:
        try:
            place: str | None = None
            found = bench.runs.fetch(run_id, artifact, Path(folder))
            place = str(found) if found else bench.runs.training_location(run_id, Path(folder))
            if place is None:
                said = (
                    f"its run {run_id} has neither the artifact {artifact} nor a dataset logged as 'training'"
                )
                return None, 0, said
            scan = scan_table(place, rows=_TRAINING_ROWS_MAX, seed=_SEED)
        except TransientError:
            raise
        except ServingError as error:
            return None, 0, str(error)
    return scan.frame, scan.total, artifact if found else place


def _leakage(bench: Bench, version: str, held_out: HeldOut, *, is_champion: bool) -> Finding:
    policy = policy_of(bench)
    metric = LEAKAGE if not is_champion else f"{LEAKAGE} (champion)"
    training, total, said = training_frame(bench, version, policy.leakage.artifact)
    if training is None:
        return warn(
            metric,
            f"nobody knows whether version {version} has learnt from held-out rows: {said}. Next: log the "
            "training data with the run (mlflow.log_input(..., context='training'))",
        )
    rows = held_out.rows.assign(**{policy.label: held_out.labels})
    shared = [name for name in rows.columns if name in training.columns and name not in policy.leakage.ignore]
    inputs = [name for name in shared if name != policy.label]
    if 2 * len(inputs) < len(held_out.rows.columns):
        return warn(
            metric,
            f"the training data of version {version} ({said}) has {len(inputs)} of "
            f"{len(held_out.rows.columns)} held-out columns: too few to recognise a row. "
            "Next: log the training rows as they are held out",
        )
    found = judge_leakage(
        policy.leakage,
        version,
        row_hashes(rows[shared]),
        row_hashes(training[shared]),
        held_out.numbers,
        is_champion=is_champion,
    )
    if found.outcome is Outcome.PASS and total > len(training):
        return warn(metric, f"{found.reason} (only {len(training)} of {total} training rows were compared)")
    return found


def _broken(bench: Bench, version: str, champion: str) -> str | None:
    """What the champion's clients would miss, "" for nothing, None where a signature is missing."""
    model = bench.policy.model
    now = bench.runs.signature(f"models:/{model}/{champion}")
    then = bench.runs.signature(f"models:/{model}/{version}")
    return None if now is None or then is None else signature_break(now, then)


def _live_answers(frame: pd.DataFrame) -> Any:
    """Captured answers, shape (n,) or (n, k)."""
    if PREDICTION in frame.columns:
        return frame[PREDICTION].dropna().to_numpy()
    names = [f"{PREDICTION}.{part}" for part in range(frame.shape[1])]
    parts = [name for name in names if name in frame.columns]
    return frame[parts].dropna().to_numpy() if parts else np.zeros(0)
