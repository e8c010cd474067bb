"""Closing the loop: when drift asks for it, train on recent flights and make that the candidate.

The deployment in `examples/flights/prefect.yaml` subscribes to `interlock.retrain.requested`. What it
registers goes the way of every candidate: it has to beat what serves, and drift alone promotes nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from examples.flights.data import FEATURES, LABEL, FlightFiles, features, load_tables
from examples.flights.models import Fitted, register, train

if TYPE_CHECKING:
    import pandas as pd

ROLE = "congested"
DAYS = 90


def labelled_flights() -> pd.DataFrame:
    """All flights of 2013 that arrived, with their features, label and scheduled departure."""
    frame = features(load_tables())
    return frame[frame[LABEL].notna()].astype({LABEL: "int64"}).reset_index(drop=True)


def between(flights: pd.DataFrame, start: Any, end: Any) -> pd.DataFrame:
    """The flights with `start <= scheduled departure < end`, as New York's calendar has it."""
    import pandas as pd

    local = flights["scheduled"].dt.tz_convert("America/New_York")
    first, last = (pd.Timestamp(day).tz_localize("America/New_York") for day in (start, end))
    return flights[(local >= first) & (local < last)].reset_index(drop=True)


def fit(rows: pd.DataFrame) -> Fitted:
    """The recipe of v2 (`congested`), fitted on these rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        rows[[*FEATURES, LABEL]].to_parquet(path, index=False)
        return train(ROLE, FlightFiles(path, path, path))


def probabilities(fitted: Fitted, rows: pd.DataFrame) -> Any:
    """What a fitted version answers, one probability a row."""
    from examples.flights.scoring import Encoder

    return fitted.estimator.predict_proba(Encoder(fitted.recipe["encoder"])(rows[list(FEATURES)]))[:, 1]


@flow(name="retrain-flights", log_prints=True)
def retrain(model: str = "flights", until: str = "2013-07-01", days: int = DAYS) -> str:
    """Train on the flights of the last days and make the new version the candidate.

    Args:
        model: Registered model, as the event names it.
        until: The day before which flights have arrived; the replayed year's calendar, not today's.
        days: How many days are recent.
    """
    import mlflow
    import pandas as pd

    flights = labelled_flights()
    end = pd.Timestamp(until)
    rows = between(flights, end - pd.Timedelta(days=days), end)
    version = register(fit(rows), model, example=rows.head(2), run_name=f"retrained until {until}")
    mlflow.MlflowClient().set_registered_model_alias(model, "candidate", version)
    return f"{model} v{version}, trained on {len(rows):,} flights before {until}, is the candidate"
