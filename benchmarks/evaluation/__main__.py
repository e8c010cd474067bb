"""How long the offline gate takes, and how much memory, on 200,000 real flights.

    python -m benchmarks.evaluation [--rows 200000] [--report FILE]

Two models learn on the first third of the year; the flights after it are the held-out rows. MLflow keeps
its records in SQLite, without a server. The evaluation runs in a process of its own, whose peak memory
(everything that it imports included) is measured, twice: the second time the champion's answers
come from the cache. Prints a table; `--report` keeps the verdict's page and the data page beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.flights.data import FEATURES, LABEL, features, load_tables

TRAINING_END, MODEL = "2013-05-01", "flights"
ALL = (
    {"name": "roc_auc", "min": 0.55, "margin": 0.01},
    {"name": "log_loss", "max": 0.6, "margin": 0.01},
    {"name": "brier", "margin": 0.01},
    {"name": "calibration_error", "margin": 0.02},
    {"name": "accuracy", "margin": 0.01},
    {"name": "f1", "margin": 0.02},
)
SLICES = (
    {"column": "origin", "metric": "roc_auc", "margin": 0.02},
    {"column": "carrier", "metric": "log_loss", "margin": 0.05, "min_rows": 1000},
    {"column": "dep_minute", "bins": [480, 720, 1020], "metric": "roc_auc", "margin": 0.02},
)


def policy_of(rows: int) -> dict[str, Any]:
    """The policy that is measured: six metrics, 18 slices, leakage, latency to p99, a cost."""
    return {
        "endpoint": MODEL,
        "model": MODEL,
        "owner": "bench@example.com",
        "evaluation": {
            "data": "held_out.parquet",
            "label": LABEL,
            "task": "classification",
            "max_rows": rows,
            "metrics": ALL,
            "slices": SLICES,
            "latency_ms": {"p50": 50, "p95": 100, "p99": 200},
            "cost": {"per_hour_usd": 0.2, "calls_per_s": 100, "max_usd": 0.001},
            "leakage": {"artifact": "data/train.parquet"},
        },
        "shadow": {"enabled": False, "reason": "a benchmark of the gate"},
    }


def prepare(folder: Path, rows: int) -> dict[str, str]:
    """Held-out rows and two registered versions with their training data; version to MLflow run."""
    import mlflow

    from examples.flights.data import FlightFiles
    from examples.flights.models import register, train
    from tasks.runs import Runs

    flights: Any = features(load_tables())
    flights = flights[flights[LABEL].notna()]
    is_training = flights["scheduled"] < f"{TRAINING_END}T00:00:00Z"
    training, after = flights[is_training], flights[~is_training]
    columns = [*FEATURES, LABEL]
    files = FlightFiles(folder / "train.parquet", folder / "held_out.parquet", folder / "live.parquet")
    training.astype({LABEL: int})[columns].to_parquet(files.train, index=False)
    after.head(rows).astype({LABEL: int})[columns].to_parquet(files.held_out, index=False)
    runs = Runs(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_tracking_uri(runs.tracking_uri)
    for name in ("flights/training", f"interlock/{MODEL}"):
        mlflow.create_experiment(name, artifact_location=(folder / "artifacts").as_uri())
    made: dict[str, str] = {}
    for role in ("baseline", "congested"):
        version = register(train(role, files), MODEL, example=training.head(2))
        run_id = str(mlflow.MlflowClient().get_model_version(MODEL, version).run_id)
        runs.log_file(run_id, files.train, "data")
        made[version] = run_id
    return made


class _Registry:
    """The one verb of the registry that an evaluation needs."""

    def __init__(self, run_ids: Mapping[str, str]) -> None:
        self._run_ids = run_ids

    def version(self, model: str, version: str) -> Any:
        from tasks.registry import ModelVersion

        return ModelVersion(model, version, self._run_ids[version], {})


def evaluate(folder: Path, run_ids: Mapping[str, str], rows: int, report: str) -> dict[str, Any]:
    """One evaluation in this process: seconds by part, peak memory before and after."""
    from configs.policy import Policy
    from configs.settings import Settings
    from tasks.bench import Bench
    from tasks.evaluation import Subject, evaluate_version, log_pages
    from tasks.runs import Runs

    began = last = time.perf_counter()
    doing, taken = "importing", dict[str, float]()

    def tell(progress: Mapping[str, Any]) -> None:
        nonlocal doing, last
        now = time.perf_counter()
        taken[doing] = taken.get(doing, 0.0) + now - last
        doing, last = str(progress["doing"]).partition(",")[0], now

    registry: Any = _Registry(run_ids)
    settings = Settings(state_dir=folder / "state", policy_dir=folder)
    runs = Runs(f"sqlite:///{folder / 'mlflow.db'}")
    bench = Bench(Policy.model_validate(policy_of(rows)), settings, registry=registry, runs=runs)
    run_id = runs.open_run(MODEL, f"bench-{time.time_ns()}", {})
    subject = Subject(bench, "2", "1", tell, lambda: None, run_id)
    tell({"doing": "opening"})
    evaluated = evaluate_version(subject)
    tell({"doing": "drawing the pages"})
    decided_s, decided_mib = time.perf_counter() - began, _peak_mib()
    page = log_pages(subject, evaluated)
    tell({"doing": ""})
    if report:
        Path(report).write_text(page)
        data = runs.fetch(run_id, "evaluation-data.html", folder)
        assert data is not None
        Path(report).with_name("evaluation-data.html").write_bytes(data.read_bytes())
    return {
        "outcome": evaluated.verdict.outcome.value,
        "reason": evaluated.verdict.reason,
        "rows": len(evaluated.held_out.labels),
        "findings": len(evaluated.verdict.findings),
        "seconds": taken,
        "decided_s": decided_s,
        "total_s": time.perf_counter() - began,
        "decided_mib": decided_mib,
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prepare once, evaluate in two processes, print what they took."""
    parser = argparse.ArgumentParser(description="The offline gate on many rows: time and memory")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--report", default="")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside:
        told = json.loads(asked.inside)
        print(json.dumps(evaluate(Path(told["folder"]), told["run_ids"], asked.rows, asked.report)))
        return
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as folder:
        print(f"training two models, {asked.rows:,} held-out rows ...", flush=True)
        run_ids = prepare(Path(folder), asked.rows)
        inside = json.dumps({"folder": folder, "run_ids": run_ids})
        for title in ("first time", "again (the champion's answers are cached)"):
            command = [sys.executable, "-m", "benchmarks.evaluation", "--rows", str(asked.rows)]
            command += ["--report", asked.report, "--inside", inside]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            _print(title, json.loads(answer.stdout.splitlines()[-1]))


def _print(title: str, found: Mapping[str, Any]) -> None:
    print(f"\n{title}: {found['outcome']} on {found['rows']:,} rows, {found['findings']} findings")
    print(f"  {found['reason']}")
    for part, seconds in found["seconds"].items():
        print(f"  {seconds:7.1f} s  {part}")
    print(f"  {found['decided_s']:7.1f} s  to the verdict, at most {found['decided_mib']:,.0f} MiB")
    print(f"  {found['total_s']:7.1f} s  with both pages, at most {found['peak_mib']:,.0f} MiB")


if __name__ == "__main__":
    main()
