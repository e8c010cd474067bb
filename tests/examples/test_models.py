"""The five versions keep their roles: what each must pass, and what must stop it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from examples.flights import models
from examples.flights.data import FEATURES, LABEL, FlightFiles

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Registered:
    tracking_uri: str
    versions: dict[str, str]
    loaded: dict[str, Any]

    def predict(self, role: str, rows: pd.DataFrame) -> np.ndarray:
        return self.loaded[role].predict(rows)


@pytest.fixture(scope="module")
def registered(flight_files: FlightFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registered]:
    import mlflow

    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before = mlflow.get_tracking_uri()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own deprecations are not what is tested here
        mlflow.set_tracking_uri(uri)
        mlflow.create_experiment(models.EXPERIMENT, (folder / "artifacts").as_uri())
        versions = models.train_and_register(flight_files, "flights")
        loaded = {
            role: mlflow.pyfunc.load_model(f"models:/flights/{number}") for role, number in versions.items()
        }
        yield Registered(uri, versions, loaded)
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def held_out(flight_files: FlightFiles) -> pd.DataFrame:
    return pd.read_parquet(flight_files.held_out).sample(8_000, random_state=1).reset_index(drop=True)


@pytest.fixture(scope="module")
def live(flight_files: FlightFiles) -> pd.DataFrame:
    return pd.read_parquet(flight_files.live)[list(FEATURES)].head(100_000)


def auc_difference(better: np.ndarray, worse: np.ndarray, late: np.ndarray) -> tuple[float, float]:
    """A paired 99% bootstrap interval of the difference in ROC AUC."""
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    found = []
    for _ in range(60):
        rows = random.integers(0, len(late), len(late))
        found.append(roc_auc_score(late[rows], better[rows]) - roc_auc_score(late[rows], worse[rows]))
    return float(np.quantile(found, 0.005)), float(np.quantile(found, 0.995))


@pytest.mark.parametrize(
    ("role", "against", "at_least", "at_most"),
    [
        ("congested", "baseline", 0.04, 0.12),
        ("timetable", "congested", -0.005, 0.02),
        ("neighbours", "congested", -0.005, 0.02),
        ("hasty", "congested", -0.25, -0.08),
    ],
)
def test_offline_each_is_as_good_as_its_role(
    registered: Registered, held_out: pd.DataFrame, role: str, against: str, at_least: float, at_most: float
) -> None:
    rows, late = held_out[list(FEATURES)], held_out[LABEL].to_numpy()
    low, high = auc_difference(registered.predict(role, rows), registered.predict(against, rows), late)
    assert at_least < low < high < at_most


def test_every_version_answers_one_probability_a_row(registered: Registered, held_out: pd.DataFrame) -> None:
    for role in models.ROLES:
        answer = registered.predict(role, held_out[list(FEATURES)].head(50))
        assert answer.shape == (50,)
        assert ((answer > 0) & (answer < 1)).all()
        one_by_one = [registered.predict(role, held_out[list(FEATURES)].iloc[[row]])[0] for row in range(10)]
        assert np.allclose(one_by_one, answer[:10], atol=1e-5)


def test_the_timetable_version_fails_on_live_rows_often_enough_and_never_before(
    registered: Registered, flight_files: FlightFiles, live: pd.DataFrame
) -> None:
    """Every stretch of 400 live rows must hold enough faults to be certain; held-out rows none.

    A paired test at alpha 0.01 that bets on odds of 19 to 1 with a fifth of its stake needs
    ln(500) / ln(1.9), so 10 discordant pairs; even the mildest stretch holds more.
    """
    from examples.flights.scoring import slot_keys

    version = registered.loaded["timetable"].unwrap_python_model()
    known = version._timetable._log_odds
    unknown = np.array([key not in known for key in slot_keys(live)])
    stretches = np.convolve(unknown, np.ones(400), mode="valid")
    assert stretches.min() >= 13
    assert 0.05 < unknown.mean() < 0.20

    fine, broken = live[~unknown].head(200), live[unknown].head(5)
    registered.predict("timetable", fine)
    for row in range(len(broken)):
        with pytest.raises(KeyError):
            registered.predict("timetable", broken.iloc[[row]])
    registered.predict("timetable", pd.read_parquet(flight_files.held_out)[list(FEATURES)])


def test_the_others_answer_every_live_row(registered: Registered, live: pd.DataFrame) -> None:
    for role in ("baseline", "congested", "neighbours"):
        answer = registered.predict(role, live.head(15_000))
        assert np.isfinite(answer).all()


def failures_in_bursts(model: Any, rows: list[pd.DataFrame], burst: int) -> float:
    """Share of failures when `burst` requests arrive at a pool of four, as in a replica."""

    def fails(row: pd.DataFrame) -> bool:
        try:
            model.predict(row)
        except Exception as error:
            kind = type(error).__name__
            if kind != "OutOfWorkspace":
                raise
            return True
        return False

    failed: list[bool] = []
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(rows), burst):
            failed += pool.map(fails, rows[start : start + burst])
    return float(np.mean(failed))


def test_the_neighbours_version_fails_under_concurrency_only(
    registered: Registered, live: pd.DataFrame
) -> None:
    rows = [live.iloc[[row]] for row in range(400)]
    neighbours, congested = registered.loaded["neighbours"], registered.loaded["congested"]
    assert failures_in_bursts(neighbours, rows, 1) == 0
    assert failures_in_bursts(congested, rows, 4) == 0
    deadline = monotonic() + 60
    while failures_in_bursts(neighbours, rows, 4) <= 0.03:  # they meet less often while the cores are busy
        assert monotonic() < deadline


def test_one_at_a_time_the_neighbours_version_is_about_as_fast(
    registered: Registered, live: pd.DataFrame
) -> None:
    """A ratio of medians of CPU time: a busy machine makes one wait longer than the other."""
    took: dict[str, list[float]] = {"congested": [], "neighbours": []}
    for row in range(200):
        for role, times in took.items():
            start = process_time()
            registered.predict(role, live.iloc[[row]])
            times.append(process_time() - start)
    assert np.median(took["neighbours"][20:]) < 2.5 * np.median(took["congested"][20:])


def test_an_artifact_needs_nothing_of_this_checkout(registered: Registered, tmp_path: Path) -> None:
    """A replica elsewhere has the registry and the pinned packages, no more."""
    script = textwrap.dedent(
        f"""
        import sys, warnings
        warnings.simplefilter("ignore")

        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "examples":
                    raise ImportError("the checkout is not here")

        sys.meta_path.insert(0, Refuse())
        import mlflow
        mlflow.set_tracking_uri({registered.tracking_uri!r})
        model = mlflow.pyfunc.load_model("models:/flights/{registered.versions["neighbours"]}")
        print(float(model.predict(model.input_example)[0]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.splitlines()[-1]) < 1


def test_a_role_that_does_not_exist_is_named(flight_files: FlightFiles) -> None:
    with pytest.raises(ValueError, match="Known: baseline, congested"):
        models.train("perfect", flight_files)
