"""The prepared flights, made once a session: reading 336,776 of them takes a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.flights.data import FlightFiles, prepare


@pytest.fixture(scope="session")
def flight_files(tmp_path_factory: pytest.TempPathFactory) -> FlightFiles:
    pytest.importorskip("pandas")
    return prepare(Path(tmp_path_factory.mktemp("flights")))
