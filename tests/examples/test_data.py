"""The flights: nothing that was not known at the moment of the prediction, and splits apart in time."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from examples.flights.data import (
    FEATURES,
    LABEL,
    LEAD_MINUTES,
    MEASURES,
    DataMissing,
    FlightFiles,
    features,
    load_tables,
    prepare,
    split,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    loaded = load_tables()
    flights = loaded["flights"]
    # Two weeks suffice, across the end of the training days.
    near = (flights["month"] == 4) & (flights["day"] >= 24) | (flights["month"] == 5) & (flights["day"] <= 7)
    return loaded | {"flights": flights[near].reset_index(drop=True)}


def test_later_events_change_no_feature(tables: dict[str, pd.DataFrame]) -> None:
    """Rewrite everything that happened from 18:00 on: rows asked before that must stay the same."""
    now = pd.Timestamp("2013-04-29 18:00", tz="America/New_York").tz_convert("UTC")
    before = features(tables)

    flights = tables["flights"].copy()
    scheduled = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(
        flights["minute"], unit="min"
    )
    left = scheduled + pd.to_timedelta(flights["dep_delay"].astype("Int64"), unit="min")
    unknown = (left > now) | left.isna()
    # What had not left by then leaves later still, is cancelled, or arrives very late.
    flights.loc[unknown, "dep_delay"] = flights.loc[unknown, "dep_delay"].to_numpy() + 400.0
    flights.loc[unknown, ["arr_delay", "air_time", "dep_time", "arr_time"]] = 999.0
    weather = tables["weather"].copy()
    future = pd.to_datetime(weather["time_hour"], utc=True) > now
    weather.loc[future, ["temp", "wind_speed", "precip", "visib", "pressure"]] = -1e6
    after = features(tables | {"flights": flights, "weather": weather})

    asked_by_then = before["asked"] <= now
    assert asked_by_then.sum() > 3_000
    pd.testing.assert_frame_equal(
        before.loc[asked_by_then, list(FEATURES)], after.loc[(after["asked"] <= now), list(FEATURES)]
    )
    # And the rewriting is felt afterwards, or this test would prove nothing.
    later = before["asked"] > now
    assert not before.loc[later, "recent_delay"].equals(after.loc[later, "recent_delay"])


def test_congestion_is_what_a_plain_count_says(tables: dict[str, pd.DataFrame]) -> None:
    frame = features(tables)
    flights = tables["flights"].copy()
    flights["scheduled"] = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(
        flights["minute"], unit="min"
    )
    flights["left"] = flights["scheduled"] + pd.to_timedelta(flights["dep_delay"].astype("Int64"), unit="min")
    day = flights["scheduled"].dt.tz_convert("America/New_York").dt.date
    for row in frame.sample(60, random_state=3).itertuples():
        asked = row.scheduled - pd.Timedelta(minutes=LEAD_MINUTES)
        same = flights[
            (flights["origin"] == row.origin) & (day == row.scheduled.tz_convert("America/New_York").date())
        ]
        recent = same[(same["left"] <= asked) & (same["left"] > asked - pd.Timedelta(minutes=120))]
        overdue = (same["scheduled"] <= asked).sum() - (same["left"] <= asked).sum()
        assert row.overdue == max(0, overdue)
        if len(recent):
            assert row.recent_delay == pytest.approx(recent["dep_delay"].mean())
        else:
            assert np.isnan(row.recent_delay)


def test_splits_are_apart_in_time_and_only_judged_rows_carry_the_label(flight_files: FlightFiles) -> None:
    train, held_out, live = (
        pd.read_parquet(path) for path in (flight_files.train, flight_files.held_out, flight_files.live)
    )
    assert list(train.columns) == list(held_out.columns) == [*FEATURES, LABEL]
    assert LABEL not in live.columns
    assert live["scheduled"].is_monotonic_increasing
    assert live["scheduled"].min() >= pd.Timestamp("2013-06-10", tz="America/New_York")
    assert len(train) > 100_000
    assert len(held_out) > 25_000
    assert len(live) > 180_000
    for frame in (train, held_out, live):
        missing = frame[list(FEATURES)].isna().any()
        assert set(missing[missing].index) <= set(MEASURES)
    assert train[LABEL].mean() == pytest.approx(0.24, abs=0.02)


def test_the_label_is_an_arrival_more_than_15_minutes_late(tables: dict[str, pd.DataFrame]) -> None:
    frame = features(tables)
    assert frame[LABEL].isna().sum() == tables["flights"]["arr_delay"].isna().sum()
    assert frame[LABEL].sum() == (tables["flights"]["arr_delay"] > 15).sum()
    train, held_out, live = split(frame)
    assert len(train) + len(held_out) == frame[LABEL].notna().sum()
    assert live.empty


def test_preparing_again_reads_the_files_that_are_there(flight_files: FlightFiles) -> None:
    stamp = flight_files.train.stat().st_mtime_ns
    assert prepare(flight_files.train.parent) == flight_files
    assert flight_files.train.stat().st_mtime_ns == stamp


def test_a_folder_without_flights_is_named(tmp_path) -> None:
    with pytest.raises(DataMissing, match=r"No flights\.csv"):
        load_tables(tmp_path)


def test_what_memory_held_before_changes_nothing() -> None:
    """glibc fills what it hands out with 0x7f, a huge float: pandas 2.3 rounds it where one is missing."""
    code = "from examples.flights.data import features, load_tables; print(len(features(load_tables())))"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        env=os.environ | {"MALLOC_PERTURB_": str(0x7F ^ 0xFF)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("336776\n", 0), done.stderr
