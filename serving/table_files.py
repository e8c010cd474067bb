"""Tables in files and databases: never more rows in memory than are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.capture.reader import READ_MEMORY_MIB
from serving.errors import SetupError

if TYPE_CHECKING:
    import pandas as pd

_ROWS_AT_ONCE = 10_000
_PANDAS_INDEX = r"__index_level_\d+__"
"""How pandas names an index without a name in Parquet: no column of the data."""


def sample_file(path: Path, *, rows: int, seed: int) -> pd.DataFrame:
    """At most `rows` rows of a parquet or CSV file, drawn while scanning, the same for the same seed.

    An index that pandas wrote along is left out. Raises `SetupError` for a file that is neither.
    """
    import duckdb

    target = str(path).replace("'", "''")
    source = f"read_csv('{target}')" if path.suffix == ".csv" else f"read_parquet('{target}')"
    query = f"SELECT * FROM {source} USING SAMPLE reservoir({int(rows)} ROWS) REPEATABLE ({int(seed)})"  # noqa: S608
    with contextlib.closing(duckdb.connect()) as database:
        database.execute(f"SET memory_limit = '{READ_MEMORY_MIB}MiB'")
        database.execute("SET threads = 1")  # a reservoir is repeatable on one thread only
        try:
            frame = database.execute(query).df()
        except duckdb.Error as error:
            raise SetupError(
                f"{path} could not be read as a table: {str(error)[:200]}. Next: write it as parquet or CSV"
            ) from error
    return frame.loc[:, ~frame.columns.str.fullmatch(_PANDAS_INDEX)]


def stream_file(path: Path, columns: Sequence[str]) -> Generator[list[tuple[Any, ...]]]:
    """The columns of a parquet or CSV file, some thousand rows at a time.

    Raises `SetupError` for a file that is neither, or lacks a column.
    """
    import duckdb

    target = str(path).replace("'", "''")
    source = f"read_csv('{target}', sample_size=-1)" if path.suffix == ".csv" else f"read_parquet('{target}')"
    listed = ", ".join(_quoted(name) for name in columns)
    with contextlib.closing(duckdb.connect()) as database:
        database.execute(f"SET memory_limit = '{READ_MEMORY_MIB}MiB'")
        try:
            result = database.execute(f"SELECT {listed} FROM {source}")  # noqa: S608
            while rows := result.fetchmany(_ROWS_AT_ONCE):
                yield rows
        except duckdb.Error as error:
            raise SetupError(
                f"{path}: the columns {', '.join(columns)} could not be read: {str(error)[:200]}. Next: "
                "write them as parquet or CSV, or name the right columns in the policy"
            ) from error


def stream_table(url: str, table: str, columns: Sequence[str]) -> Generator[list[tuple[Any, ...]]]:
    """The columns of a database's table or view, some thousand rows at a time. Raises `SetupError`."""
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    engine = sa.create_engine(url)
    schema, _, name = table.rpartition(".")
    query = sa.select(*[sa.column(column) for column in columns]).select_from(
        sa.table(name, schema=schema or None)
    )
    try:
        with engine.connect() as connection:
            result = connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query)
            for rows in result.partitions():
                yield [tuple(row) for row in rows]
    except SQLAlchemyError as error:
        raise SetupError(
            f"the table {table} of {engine.url.render_as_string()} could not be read: "
            f"{str(error.__cause__ or error)[:200]}. Next: check labels.table and labels.database_env"
        ) from error
    finally:
        engine.dispose()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
