"""Samples of tables in files: never more rows in memory than are asked for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from serving.capture.reader import READ_MEMORY_MIB
from serving.errors import SetupError

if TYPE_CHECKING:
    import pandas as pd


def sample_file(path: Path, *, rows: int, seed: int) -> pd.DataFrame:
    """At most `rows` rows of a parquet or CSV file, drawn while scanning, the same for the same seed.

    Raises `SetupError` for a file that is neither.
    """
    import duckdb

    target = str(path).replace("'", "''")
    source = f"read_csv('{target}')" if path.suffix == ".csv" else f"read_parquet('{target}')"
    query = f"SELECT * FROM {source} USING SAMPLE reservoir({int(rows)} ROWS) REPEATABLE ({int(seed)})"  # noqa: S608
    with contextlib.closing(duckdb.connect()) as database:
        database.execute(f"SET memory_limit = '{READ_MEMORY_MIB}MiB'")
        database.execute("SET threads = 1")  # a reservoir is repeatable on one thread only
        try:
            return database.execute(query).df()
        except duckdb.Error as error:
            raise SetupError(
                f"{path} could not be read as a table: {str(error)[:200]}. Next: write it as parquet or CSV"
            ) from error
