"""Retraining: on the flights before the day that the window's requests ask about, whichever that is."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from configs.settings import Settings
from examples.flights import retrain as module
from examples.flights.data import FEATURES, LABEL, features, load_tables
from tests.serving.capture.exchanges import record, recorder

pytestmark = pytest.mark.slow
NOW = 1_795_340_000.0


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    """Three weeks of them."""
    loaded = load_tables()
    every = loaded["flights"]
    june = (every["month"] == 6) & (every["day"] <= 21)
    frame = features(loaded | {"flights": every[june].reset_index(drop=True)})
    return frame[frame[LABEL].notna()].astype({LABEL: "int64"}).reset_index(drop=True)


def capture(folder: Path, rows: pd.DataFrame, at: float) -> None:
    """The rows as they were asked, one a request, within ten seconds of a moment."""
    writing = recorder(folder, captures_dir=folder, clock=lambda: at + 10, spool_dir=None)
    plain = json.loads(rows[list(FEATURES)].to_json(orient="values"))
    for number, row in enumerate(plain):
        body = {"dataframe_split": {"columns": list(FEATURES), "data": [row]}}
        writing.offer(
            record(
                number,
                time=at + number / 100,
                request=json.dumps(body).encode(),
                response=b'{"predictions": [0.2]}',
            )
        )
    writing.close()


def on_day(flights: pd.DataFrame, day: str) -> pd.DataFrame:
    return module.between(flights, day, pd.Timestamp(day) + pd.Timedelta(days=1)).head(400)


def test_recent_is_what_the_window_that_drifted_asks_about(
    flights: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state_dir=tmp_path)
    capture(settings.captures_dir / "flights", on_day(flights, "2013-06-12"), NOW)
    capture(settings.captures_dir / "flights", on_day(flights, "2013-06-18"), NOW + 3600)
    trained: list[pd.DataFrame] = []
    aliases: list[tuple[Any, ...]] = []

    def fit(rows: pd.DataFrame) -> SimpleNamespace:
        trained.append(rows)
        return SimpleNamespace()

    monkeypatch.setattr(module, "labelled_flights", lambda: flights)
    monkeypatch.setattr(module, "load_settings", lambda: settings)
    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module, "register", lambda *_, **__: "7")
    client = SimpleNamespace(set_registered_model_alias=lambda *told: aliases.append(told))
    monkeypatch.setattr("mlflow.MlflowClient", lambda: client)
    for at, before in ((NOW, "2013-06-12"), (NOW + 3600, "2013-06-18")):
        window = (pd.Timestamp(moment, unit="s", tz="UTC").isoformat() for moment in (at - 60, at + 60))
        said = module.retrain.fn("flights", "flights", *window, days=5)
        assert said.endswith(f"flights before {before}, is the candidate")
        local = trained[-1]["scheduled"].dt.tz_convert("America/New_York").dt.tz_localize(None)
        assert local.max() < pd.Timestamp(before)
        assert local.min() >= pd.Timestamp(before) - pd.Timedelta(days=5)
    assert aliases == [("flights", "candidate", "7")] * 2


def test_requests_that_are_no_flights_say_what_to_pass(flights: pd.DataFrame, tmp_path: Path) -> None:
    strange = on_day(flights, "2013-06-12").assign(temp=-400.0)
    capture(tmp_path, strange, NOW)
    with pytest.raises(ValueError, match=r"is a flight of 2013. Next: pass `until`"):
        module.day_asked_about(tmp_path, flights, NOW - 60, NOW + 60)
    with pytest.raises(ValueError, match="none of the 0 captured rows"):
        module.day_asked_about(tmp_path, flights, NOW + 600, NOW + 660)


def test_the_trigger_fills_the_flows_parameters() -> None:
    (deployment,) = yaml.safe_load(Path("examples/flights/prefect.yaml").read_text())["deployments"]
    (trigger,) = deployment["triggers"]
    assert set(trigger["parameters"]) <= set(inspect.signature(module.retrain.fn).parameters)
