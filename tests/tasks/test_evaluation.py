"""The gate from files to verdict: real MLflow (its SQL store), a loopback S3, Evidently."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from configs.policy import Policy
from configs.settings import Settings
from evals.verdict import Finding, Outcome, Verdict
from serving.errors import SetupError
from serving.labels import Label, LabelBook
from tasks.bench import Bench
from tasks.evaluation import Evaluated, Subject, evaluate_version, log_pages
from tasks.held_out import read_held_out, row_hashes
from tasks.runs import Runs
from tests.serving.capture.exchanges import record, recorder
from tests.tasks.doubles import HandClock, MemoryRegistry

# MLflow's hints (integer columns, type hints, ambiguous sources) and moto's deprecated calls
_HINTS = ("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(hint) for hint in _HINTS)]

ROWS = 3000


def table(seed: int = 0, rows: int = ROWS) -> pd.DataFrame:
    """One real signal, a region, a time; late follows the signal."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=rows)
    return pd.DataFrame(
        {
            "signal": signal,
            "region": rng.choice(["east", "west"], rows),
            "at": 1_799_990_000.0 - np.arange(rows),
            "late": (signal + rng.normal(size=rows) > 0).astype(int),
        }
    )


class Workshop:
    """A folder with held-out rows, MLflow's store, and versions whose skill is chosen."""

    def __init__(self, folder: Path) -> None:
        import mlflow

        self.folder = folder
        self.clock = HandClock()
        self.settings = Settings(state_dir=folder / "state", policy_dir=folder)
        self.runs = Runs(f"sqlite:///{folder / 'mlflow.db'}")
        self.registry = MemoryRegistry()
        mlflow.set_tracking_uri(self.runs.tracking_uri)
        mlflow.create_experiment("training", artifact_location=(folder / "artifacts").as_uri())
        experiment = mlflow.create_experiment(
            "interlock/flights", artifact_location=(folder / "artifacts").as_uri()
        )
        assert experiment
        table().to_parquet(folder / "held_out.parquet")
        self.section: dict[str, Any] = {
            "data": "held_out.parquet",
            "label": "late",
            "task": "classification",
            "metrics": [
                {"name": "roc_auc", "min": 0.6, "margin": 0.02},
                {"name": "accuracy", "margin": 0.02},
            ],
            "evaluators": False,
            "data_page": False,
        }

    def add(self, version: str, skill: float, *, training: pd.DataFrame | None = None, **log: Any) -> None:
        """Register a version; `training` is logged as a dataset with the context "training"."""
        import mlflow

        class Model(mlflow.pyfunc.PythonModel):
            def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
                wild = np.random.default_rng(9).normal(size=len(model_input))
                score = skill * model_input["signal"].to_numpy() + (1 - skill) * wild
                return 1 / (1 + np.exp(-2 * score))

        mlflow.set_tracking_uri(self.runs.tracking_uri)
        mlflow.set_experiment("training")
        with mlflow.start_run() as run:
            if training is not None:
                path = self.folder / f"training-{version}.parquet"
                training.to_parquet(path)
                mlflow.log_input(mlflow.data.from_pandas(training, source=str(path)), context="training")
            mlflow.pyfunc.log_model(
                name="model", python_model=Model(), pip_requirements=[], registered_model_name="late", **log
            )
        self.registry.logged_by[version] = run.info.run_id

    def bench(self, **section: Any) -> Bench:
        policy = Policy.model_validate(
            {
                "endpoint": "flights",
                "model": "late",
                "owner": "me@example.com",
                "evaluation": self.section | section,
                "shadow": {"enabled": False, "reason": "a test"},
            }
        )
        registry: Any = self.registry
        return Bench(policy, self.settings, registry=registry, runs=self.runs, clock=self.clock)

    def evaluate(self, version: str, champion: str = "", *, run_id: str = "", **section: Any) -> Evaluated:
        self.told: list[Any] = []
        subject = Subject(self.bench(**section), version, champion, self.told.append, lambda: None, run_id)
        return evaluate_version(subject)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("workshop"))
    fresh = table(1)
    leaking = pd.concat([fresh, table().iloc[[5, 17, 400]]]).astype({"signal": "float32"})
    made.add("1", 0.9, training=fresh)
    made.add("2", 0.95, training=leaking)
    made.add("3", 0.1)
    return made


def finding(verdict: Verdict, metric: str) -> Finding:
    return next(one for one in verdict.findings if one.metric == metric)


def test_a_good_version_passes_and_a_worse_one_fails(shop: Workshop) -> None:
    good = shop.evaluate("1").verdict
    assert good.outcome is Outcome.PASS, good.reason
    worse = shop.evaluate("3", "1").verdict
    assert worse.outcome is Outcome.FAIL
    assert "roc_auc" in worse.reason
    assert any("3000 of 3000" in one["doing"] for one in shop.told)


def test_the_champion_is_scored_once_for_the_same_rows(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.evaluate("1", "3")
    loaded: list[str] = []
    load = shop.runs.load_model
    monkeypatch.setattr(shop.runs, "load_model", lambda uri: (loaded.append(uri), load(uri))[1])
    again = shop.evaluate("1", "3")
    assert loaded == ["models:/late/1"]
    assert again.verdict == shop.evaluate("1", "3").verdict
    other = table(4)
    other.to_parquet(shop.folder / "other.parquet")
    loaded.clear()
    shop.evaluate("1", "3", data="other.parquet")
    assert loaded == ["models:/late/1", "models:/late/3"]


def test_leakage_is_found_counted_and_named(shop: Workshop) -> None:
    verdict = shop.evaluate("2", "1").verdict
    assert verdict.outcome is Outcome.FAIL
    assert "3 of 3000 held-out rows" in verdict.reason
    assert "rows 5, 17, 400" in verdict.reason
    assert finding(verdict, "leakage (champion)").outcome is Outcome.PASS
    tolerated = shop.evaluate("2", "1", leakage={"max_share": 0.01}).verdict
    assert finding(tolerated, "leakage").outcome is Outcome.PASS
    backwards = finding(shop.evaluate("1", "2").verdict, "leakage (champion)")
    assert backwards.outcome is Outcome.INCONCLUSIVE
    assert not backwards.blocks
    unknown = finding(shop.evaluate("3", "1").verdict, "leakage")
    assert "nobody knows whether version 3" in unknown.reason
    assert not unknown.blocks


def test_an_artifact_can_be_the_training_data(shop: Workshop) -> None:
    import mlflow

    table().head(50).to_parquet(shop.folder / "reference.parquet")
    run_id = shop.registry.logged_by["3"]
    mlflow.MlflowClient().log_artifact(run_id, str(shop.folder / "reference.parquet"), "data")
    found = finding(shop.evaluate("3", "", leakage={"artifact": "data/reference.parquet"}).verdict, "leakage")
    assert found.outcome is Outcome.FAIL
    assert "50 of 3000" in found.reason


def test_rows_are_known_again_in_other_types() -> None:
    rows = table(rows=20)
    other = rows.astype({"signal": "float32", "late": "float64", "region": "category"})
    assert np.array_equal(row_hashes(rows), row_hashes(other))
    assert not np.isin(row_hashes(rows.assign(signal=rows["signal"] + 0.1)), row_hashes(rows)).any()


@pytest.mark.parametrize(
    ("fresh", "outcome", "words"),
    [
        ({"max_age_s": 86_400, "column": "at"}, Outcome.PASS, "the policy allows 24 h"),
        ({"max_age_s": 3600, "column": "at"}, Outcome.INCONCLUSIVE, "hold out newer rows"),
        ({"max_age_s": 3600, "column": "region"}, Outcome.ERROR, "holds no time"),
        ({"max_age_s": 3600}, Outcome.ERROR, "in the future"),
    ],
)
def test_stale_rows(
    shop: Workshop, fresh: dict[str, Any], outcome: Outcome, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "column" not in fresh:
        monkeypatch.setattr(shop.clock, "now", 1_000_000_000.0)  # long before the file was written
    verdict = shop.evaluate("1", fresh=fresh).verdict
    assert verdict.outcome is outcome
    assert words in finding(verdict, "age of the rows").reason


def test_a_signature_that_breaks_clients_fails_unless_allowed(shop: Workshop) -> None:
    from mlflow.models import infer_signature

    rows = table().drop(columns="late")
    shop.add("4", 0.9, signature=infer_signature(rows[["signal"]], np.array([0.5])))
    shop.add("5", 0.92, signature=infer_signature(rows[["signal", "region"]], np.array([0.5])))
    broken = shop.evaluate("5", "4").verdict
    assert broken.outcome is Outcome.FAIL
    assert "'region'" in broken.reason
    allowed = shop.evaluate("5", "4", allow_signature_change=True).verdict
    assert allowed.outcome is Outcome.PASS, allowed.reason
    assert finding(allowed, "signature").blocks is False
    assert finding(shop.evaluate("4", "5").verdict, "signature").outcome is Outcome.PASS
    assert "no signature" in finding(shop.evaluate("4", "1").verdict, "signature").reason


def test_labels_and_answers_far_from_live_traffic_warn(shop: Workshop) -> None:
    now = shop.clock()
    writing = recorder(
        shop.settings.state,
        captures_dir=shop.settings.captures_dir / "flights",
        clock=lambda: now - 60,
        spool_dir=None,
    )
    for number in range(600):
        writing.offer(
            record(
                number,
                time=now - 60,
                version=b"1",
                request=json.dumps({"dataframe_records": [{"signal": 3.0}]}).encode(),
                response=json.dumps({"predictions": [0.95]}).encode(),
            )
        )
    writing.close()
    book = LabelBook(shop.settings.journal)
    labels = [Label("flights", f"r-{n}", 0, "1", 0.9, "1", "u", now - 60, now) for n in range(600)]
    assert book.add(labels) == 600
    book.close()
    verdict = shop.evaluate("3", "1").verdict
    said = {one.metric: one for one in verdict.findings}
    for name in ("live traffic: labels", "live traffic: answers of the champion"):
        assert said[name].outcome is Outcome.INCONCLUSIVE
        assert not said[name].blocks
        assert "hold out rows of today's traffic" in said[name].reason


def test_mlflows_evaluators_agree_and_what_they_miss_is_an_error(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = shop.runs.open_run("flights", "with evaluators", {})
    metrics = [{"name": name, "margin": 0.05} for name in ("accuracy", "f1", "roc_auc", "log_loss")]
    verdict = shop.evaluate("1", "3", run_id=run_id, evaluators=True, metrics=metrics).verdict
    agreed = finding(verdict, "evaluator (candidate)")
    assert agreed.outcome is Outcome.PASS, agreed.reason
    logged = shop.runs._client.get_run(run_id)
    assert logged.info.status == "RUNNING"
    assert logged.data.metrics["candidate_accuracy_score"] == pytest.approx(
        finding(verdict, "accuracy").candidate
    )
    assert logged.data.metrics["champion_roc_auc"] == pytest.approx(finding(verdict, "roc_auc").champion)
    evaluate = shop.runs.evaluate
    for spoil, words in (
        (lambda found: found.pop("candidate_roc_auc"), "gave no roc_auc"),
        (lambda found: found.update(candidate_f1_score=0.1), "has f1 0.1"),
        (lambda found: 1 / 0, "ZeroDivisionError"),
    ):

        def spoiled(*args: Any, spoil: Any = spoil, **kwargs: Any) -> dict[str, float]:
            found = evaluate(*args, **kwargs)
            spoil(found)
            return found

        monkeypatch.setattr(shop.runs, "evaluate", spoiled)
        verdict = shop.evaluate("1", run_id=run_id, evaluators=True, metrics=metrics[:3]).verdict
        assert words in finding(verdict, "evaluator (candidate)").reason
        assert finding(verdict, "evaluator (candidate)").outcome is Outcome.ERROR


def test_the_pages_are_logged_with_the_run(shop: Workshop) -> None:
    run_id = shop.runs.open_run("flights", "with pages", {})
    section = {
        "data_page": True,
        "latency_ms": {"p95": 500},
        "slices": [{"column": "region", "metric": "roc_auc", "margin": 0.05}],
    }
    evaluated = shop.evaluate("1", "3", run_id=run_id, **section)
    page = log_pages(
        Subject(shop.bench(**section), "1", "3", lambda _: None, lambda: None, run_id), evaluated
    )
    for words in ("Differences against their margins", "Calibration", "Latency of one call", "region = west"):
        assert words in page
    names = {one.path for one in shop.runs._client.list_artifacts(run_id)}
    assert {"evaluation.html", "evaluation-data.html"} <= names


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A loopback S3 with one bucket; its name."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "y"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="held-out-rows")
    yield "held-out-rows"
    server.stop()


def test_rows_from_an_object_store(shop: Workshop, bucket: str) -> None:
    import boto3

    store = boto3.client("s3")
    table().to_csv(shop.folder / "rows.csv.gz", index=False)
    for name in ("held_out.parquet", "rows.csv.gz"):
        store.upload_file(str(shop.folder / name), bucket, f"a/{name}")
        found = read_held_out(shop.bench(data=f"s3://{bucket}/a/{name}"), lambda *_: None)
        assert len(found.labels) == ROWS
        assert found.modified_at is not None
        np.testing.assert_allclose(found.rows["signal"], table()["signal"])
    with pytest.raises(SetupError, match="does not exist"):
        read_held_out(shop.bench(data=f"s3://{bucket}/none.parquet"), lambda *_: None)


def test_rows_from_mlflow_datasets(shop: Workshop) -> None:
    import mlflow
    from mlflow.genai.datasets import create_dataset

    mlflow.set_experiment("training")
    path = shop.folder / "held_out.parquet"
    with mlflow.start_run() as run:
        mlflow.log_input(mlflow.data.from_pandas(table(), source=str(path), name="held-out"), context="eval")
        mlflow.log_input(mlflow.data.from_pandas(table().head(3), name="made-here"))
    found = read_held_out(shop.bench(data=f"runs:/{run.info.run_id}/held-out"), lambda *_: None)
    assert len(found.labels) == ROWS
    for name, words in (("none", "it logged held-out, made-here"), ("made-here", "no address to read it")):
        with pytest.raises(SetupError, match=words):
            read_held_out(shop.bench(data=f"runs:/{run.info.run_id}/{name}"), lambda *_: None)
    dataset = create_dataset(name="judged")
    dataset.merge_records(
        [{"inputs": {"signal": 0.5 * i}, "expectations": {"late": i % 2}} for i in range(12)]
    )
    for reference in ("judged", dataset.dataset_id):
        rows = read_held_out(shop.bench(data=f"mlflow-dataset:{reference}"), lambda *_: None)
        assert sorted(rows.rows["signal"]) == [0.5 * i for i in range(12)]
        assert list(rows.labels) == [round(value / 0.5) % 2 for value in rows.rows["signal"]]
    assert (
        len(read_held_out(shop.bench(data="mlflow-dataset:judged", max_rows=5), lambda *_: None).labels) == 5
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.iloc[:0], "has no rows"),
        (lambda frame: frame.assign(late=np.nan), "has a value in 'late'"),
        (lambda frame: frame.assign(late=1), "with one class nothing can be told apart"),
        (lambda frame: frame.assign(late=frame["signal"]), "set evaluation.task to regression"),
        (
            lambda frame: frame.assign(late=[1, "a"] * (ROWS // 2)).astype({"late": object}),
            "mixes int and str",
        ),
    ],
)
def test_labels_that_answer_nothing_are_errors(shop: Workshop, change: Any, words: str) -> None:
    import pickle

    path = shop.folder / "wrong.csv"
    wrong = change(table())
    if words.startswith("mixes"):
        assert pickle.dumps(wrong)  # CSV has no types, parquet no mixed ones: this comes from datasets
        shop_runs = shop.runs
        original = shop_runs.evaluation_dataset
        shop_runs.evaluation_dataset = lambda name: (wrong, 0.0)  # type: ignore[method-assign]
        try:
            verdict = shop.evaluate("1", data="mlflow-dataset:x").verdict
        finally:
            shop_runs.evaluation_dataset = original  # type: ignore[method-assign]
    else:
        wrong.to_csv(path, index=False)
        verdict = shop.evaluate("1", data="wrong.csv").verdict
    assert verdict.outcome is Outcome.ERROR
    assert words in verdict.reason
    assert "Next: " in verdict.reason


def test_rows_without_a_label_are_left_out_and_counted(shop: Workshop) -> None:
    table().assign(late=lambda frame: frame["late"].where(frame.index >= 7)).to_csv(
        shop.folder / "some.csv", index=False
    )
    evaluated = shop.evaluate("1", data="some.csv", leakage={"check": False})
    assert evaluated.verdict.outcome is Outcome.PASS
    assert "7 of 3000" in finding(evaluated.verdict, "labels").reason
    assert evaluated.held_out.numbers[0] == 7


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"data": "none.parquet"}, "does not exist"),
        ({"data": "text.parquet"}, "could not be read"),
        ({"data": "empty.csv"}, "is empty"),
        ({"label": "truth"}, "no column 'truth'"),
        ({"group": "user"}, "correct evaluation.group"),
        ({"fresh": {"max_age_s": 1, "column": "when"}}, "correct evaluation.fresh.column"),
        ({"data": "nothing://x/y.parquet"}, "Next: "),
    ],
)
def test_data_that_cannot_be_read_says_what_to_do(
    shop: Workshop, section: dict[str, Any], words: str
) -> None:
    (shop.folder / "text.parquet").write_text("no table")
    (shop.folder / "empty.csv").write_text("")
    with pytest.raises(SetupError, match=words) as caught:
        shop.evaluate("1", **section)
    assert "Next: " in str(caught.value)
