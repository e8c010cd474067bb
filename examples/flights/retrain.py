"""Closing the loop: when drift asks for it, train on recent flights and make that the candidate.

The deployment in `examples/flights/prefect.yaml` subscribes to `interlock.retrain.requested`. What is recent
in a replayed year, the requests of the window that drifted say: they ask about its flights. What it
registers goes the way of every candidate: it has to beat what serves, and drift alone promotes nothing.
"""

from __future__ import annotations

import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from configs.loading import load_settings
from examples.flights.data import FEATURES, LABEL, FlightFiles, features, load_tables
from examples.flights.models import Fitted, register, train
from serving.capture.tables import sample_table

if TYPE_CHECKING:
    import pandas as pd

ROLE = "congested"
DAYS = 90
_NEW_YORK = "America/New_York"
_ASKED_MAX = 2000
_DAY_S = 86_400.0


def labelled_flights() -> pd.DataFrame:
    """All flights of 2013 that arrived, with their features, label and scheduled departure."""
    frame = features(load_tables())
    return frame[frame[LABEL].notna()].astype({LABEL: "int64"}).reset_index(drop=True)


def between(flights: pd.DataFrame, start: Any, end: Any) -> pd.DataFrame:
    """The flights with `start <= scheduled departure < end`, as New York's calendar has it."""
    import pandas as pd

    local = flights["scheduled"].dt.tz_convert(_NEW_YORK)
    first, last = (pd.Timestamp(day).tz_localize(_NEW_YORK) for day in (start, end))
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


def day_asked_about(captures: Path, flights: pd.DataFrame, since: float, until: float) -> pd.Timestamp:
    """The replayed year's day on which the requests of a window ask: midnight, in New York's calendar.

    `since` and `until` are seconds since the epoch. A request is its flight's features, and nearly no two
    flights share them. Raises `ValueError` where no request is a flight of that year.
    """
    asked = sample_table(captures, since=since, until=until, requests=_ASKED_MAX).frame
    known = [name for name in FEATURES if name in asked]
    days = (
        asked[known].astype(flights[known].dtypes).merge(flights, on=known)["scheduled"] if known else asked
    )
    if days.empty:
        raise ValueError(
            f"none of the {len(asked)} captured rows in {captures} is a flight of 2013. Next: pass `until`"
        )
    return days.quantile(0.5).tz_convert(_NEW_YORK).normalize().tz_localize(None)


@flow(name="retrain-flights", log_prints=True)
def retrain(
    model: str = "flights",
    endpoint: str = "flights",
    window_from: str = "",
    window_until: str = "",
    until: str = "",
    days: int = DAYS,
) -> str:
    """Train on the flights of the last days and make the new version the candidate.

    Args:
        model: Registered model, as the event names it.
        endpoint: Whose captured requests say which day of the replayed year it is, as the event names it.
        window_from: Begin of the window that drifted, as the event has it; empty: a day before its end.
        window_until: Its end; empty: now.
        until: The day before which flights have arrived, in the replayed year; empty: the one asked about.
        days: How many days are recent.
    """
    import mlflow
    import pandas as pd

    flights = labelled_flights()
    if until:
        end = pd.Timestamp(until)
    else:
        ends = datetime.fromisoformat(window_until).timestamp() if window_until else time.time()
        starts = datetime.fromisoformat(window_from).timestamp() if window_from else ends - _DAY_S
        end = day_asked_about(load_settings().captures_dir / endpoint, flights, starts, ends)
    rows = between(flights, end - pd.Timedelta(days=days), end)
    version = register(fit(rows), model, example=rows.head(2), run_name=f"retrained until {end:%Y-%m-%d}")
    mlflow.MlflowClient().set_registered_model_alias(model, "candidate", version)
    return f"{model} v{version}, trained on {len(rows):,} flights before {end:%Y-%m-%d}, is the candidate"
