"""The journal's database as its tables share it: one way to open it, one way to say that it is away."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from serving.errors import PlatformUnavailable, SetupError

_URLS = (
    "sqlite:////folder/journal.db, or postgresql+psycopg://user@host/database with the extra `postgres` "
    "(`make install` has it; else pip install psycopg[binary])"
)
"""What a journal's URL looks like."""


def read_url(text: str) -> sa.URL:
    """A database's URL. Raises `SetupError`, which does not repeat it: it may contain a password."""
    try:
        return sa.make_url(text)
    except (exc.ArgumentError, ValueError) as error:
        raise SetupError(f"INTERLOCK_JOURNAL_URL is no SQLAlchemy URL. Next: {_URLS}") from error


def open_engine(url: sa.URL, tables: sa.MetaData) -> sa.Engine:
    """An engine whose tables exist. Raises `PlatformUnavailable`, `SetupError`."""
    shown = url.render_as_string()
    try:
        if url.get_backend_name() == "sqlite" and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url, pool_pre_ping=True)
    except OSError as error:
        raise SetupError(f"no folder for the journal {shown}: {error}. Next: another path") from error
    except (exc.ArgumentError, ImportError) as error:
        raise SetupError(f"no driver for the journal {shown}: {error}. Next: {_URLS}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
    with translated(url):
        tables.create_all(engine)
    return engine


@contextmanager
def translated(url: sa.URL) -> Generator[None]:
    """Turn the database's absence into `PlatformUnavailable`, and what is no database into `SetupError`."""
    try:
        yield
    except (exc.OperationalError, exc.TimeoutError) as error:
        raise PlatformUnavailable(
            f"the journal {url.render_as_string()} does not answer: {_said(error)}. "
            "Next: check its disk or server, then repeat"
        ) from error
    except exc.DatabaseError as error:
        if type(error) is not exc.DatabaseError:  # of a constraint, say: that is the caller's
            raise
        raise SetupError(
            f"the journal {url.render_as_string()} cannot be read: {_said(error)}. Next: put a copy of it "
            "back, or move the file away to begin a new one"
        ) from error


def _said(error: exc.SQLAlchemyError) -> str:
    """The driver's own words on one line."""
    words = " ".join(str(error.__cause__ or error).split())
    return f"{error.__class__.__name__}: {words[:200]}"


def lock_for_writing(connection: sa.Connection, table: str) -> None:
    """Serialise a check and the insert that depends on it across processes."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"LOCK TABLE {table} IN EXCLUSIVE MODE")


def write_back(engine: sa.Engine) -> None:
    """Bring the write-ahead log into the database file, so that what was deleted is in neither."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Write-ahead log (readers never block the writer), durable commits, patience with writers."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    # what was deleted must be gone from the file too: `forget` and retention promise it
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()
