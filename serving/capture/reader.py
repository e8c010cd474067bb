"""Reading the durable capture: compacted Parquet and the live JSONL tail as one table.

The folder of one endpoint holds

    live/*.jsonl                              segments, written now
    parquet/hour=2026-11-22T08/part-*.parquet what `compact` made of closed segments
    compaction.json                           only while a compaction is under way (or was killed)

A compaction counts once whenever it is killed: until `compaction.json` says done, its outputs do
not count; from then on, its sources do not. The next compaction tidies up. Readers hold a shared
lock, so that no file vanishes under them; writers of segments need none.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.capture.recorder import CAPTURE_SECONDS_MAX
from serving.capture.segments import TRAILER, SegmentName, list_segments, purge_segments

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

CAPTURE_COLUMNS = {
    "time": "DOUBLE",
    "request_id": "VARCHAR",
    "endpoint": "VARCHAR",
    "version": "VARCHAR",
    "slot": "VARCHAR",
    "replica": "VARCHAR",
    "tenant": "VARCHAR",
    "user": "VARCHAR",
    "path": "VARCHAR",
    "content_type": "VARCHAR",
    "status": "SMALLINT",
    "latency_ms": "DOUBLE",
    "replay": "BOOLEAN",
    "inputs": "VARCHAR",
    "outputs": "VARCHAR",
}
"""Types in DuckDB's words. `inputs` and `outputs` are the bodies as text (JSON or CSV), or null."""

COMPACT_BYTES_MAX = 256 << 20
"""Most source bytes of one round, so that a compaction's memory is bounded."""

READ_MEMORY_MIB = 512
READ_THREADS_MAX = 4

_ROWS_AT_ONCE = 256
_LINE_BYTES_MAX = 16 << 20
"""Two bodies of 1 MiB, all of it escaped (six bytes for one). Every reading thread takes twice this."""

_ABANDONED_AFTER_S = 3 * CAPTURE_SECONDS_MAX
"""A segment without a trailer that nobody wrote to for this long belonged to a writer that died."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What one call of `compact` did."""

    segments: int
    rows: int
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class _State:
    """The contents of `compaction.json`: file names relative to the endpoint's folder."""

    is_done: bool
    sources: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def read_captures(
    folder: Path,
    *,
    since: float | None = None,
    until: float | None = None,
    versions: Sequence[str] | None = None,
    statuses: Sequence[int] | None = None,
    limit: int = 100_000,
    seed: int = 0,
    with_replays: bool = False,
    columns: Sequence[str] = tuple(CAPTURE_COLUMNS),
) -> pd.DataFrame:
    """Captured requests with `since <= time < until` (seconds since the epoch), by time.

    Where more than `limit` fit, those with the lowest hashes of id, time and seed are taken: a
    uniform sample, drawn while scanning, so memory is bounded whatever the window. Unlike a
    reservoir it does not depend on the order of the rows: it is the same before and after a
    compaction, on any number of threads. The shadow's copies are left out unless asked for.
    """
    with _locked(folder, fcntl.LOCK_SH), open_bounded() as database:
        conditions, values = _conditions(since, until, versions, statuses, with_replays=with_replays)
        drawn = _draw(database, folder, (since, until), conditions, values, limit=limit, seed=seed)
        listed = ", ".join(f'"{name}"' for name in CAPTURE_COLUMNS if name in columns)
        return database.execute(f"SELECT {listed} FROM ({drawn}) ORDER BY time, request_id", values).df()  # noqa: S608


def stream_captures(
    folder: Path,
    *,
    since: float,
    until: float,
    versions: Sequence[str] | None = None,
    statuses: Sequence[int] | None = None,
    limit: int,
    seed: int = 0,
    columns: Sequence[str],
) -> Generator[tuple[Any, ...]]:
    """The same sample row by row, in no order: for bodies, which may be a megabyte each.

    Holds the folder's shared lock until it is exhausted or closed.
    """
    with _locked(folder, fcntl.LOCK_SH), open_bounded() as database:
        conditions, values = _conditions(since, until, versions, statuses, with_replays=False)
        drawn = _draw(database, folder, (since, until), conditions, values, limit=limit, seed=seed)
        listed = ", ".join(f'"{name}"' for name in columns)
        result = database.execute(f"SELECT {listed} FROM ({drawn})", values)  # noqa: S608
        while rows := result.fetchmany(_ROWS_AT_ONCE):
            yield from rows


def find_captures(
    folder: Path, request_ids: Sequence[str], *, columns: Sequence[str], since: float | None = None
) -> Generator[tuple[Any, ...]]:
    """The captured requests of these ids, in no order; ids that were never captured just do not come.

    Scans the ids of everything since `since`, and reads the other columns of what it finds only.
    """
    with _locked(folder, fcntl.LOCK_SH), open_bounded() as database:
        database.execute("CREATE TEMP TABLE wanted AS SELECT unnest(?::VARCHAR[]) AS id", [list(request_ids)])
        conditions, values = _conditions(since, None, None, None, with_replays=False)
        listed = ", ".join(f'"{name}"' for name in columns)
        result = database.execute(
            f"SELECT {listed} FROM ({_table(folder, since=since, until=None)}) "  # noqa: S608
            f"WHERE {conditions} AND request_id IN (SELECT id FROM wanted)",
            values,
        )
        while rows := result.fetchmany(_ROWS_AT_ONCE):
            yield from rows


def count_captures(
    folder: Path, *, since: float | None = None, until: float | None = None, with_replays: bool = False
) -> pd.DataFrame:
    """All captured requests of a window, counted: `version`, `status`, `requests`.

    Reads narrow columns of everything, never a body: cheap where `read_captures` must sample.
    """
    conditions, values = _conditions(since, until, None, None, with_replays=with_replays)
    with _locked(folder, fcntl.LOCK_SH), open_bounded() as database:
        query = (
            f"SELECT version, status, count(*) AS requests FROM ({_table(folder, since=since, until=until)}) "  # noqa: S608
            f"WHERE {conditions} GROUP BY ALL ORDER BY ALL"
        )
        return database.execute(query, values).df()


def captured_tenants(folder: Path) -> set[str]:
    """Every tenant of whom a request is captured, the shadow's copies too."""
    with _locked(folder, fcntl.LOCK_SH), open_bounded() as database:
        query = f"SELECT DISTINCT tenant FROM ({_table(folder, since=None, until=None)})"  # noqa: S608
        return {str(tenant) for (tenant,) in database.execute(query).fetchall() if tenant}


def compact(folder: Path, *, now: float | None = None) -> Compaction:
    """Turn closed segments into zstd Parquet by hour, exactly once, and delete them.

    Repeat it until it reports no segments. Finishes or takes back what a killed one left. Only
    one runs at a time in a folder; a second waits.
    """
    import duckdb

    now = time.time() if now is None else now
    if not folder.is_dir():
        return Compaction(0, 0, ())
    with _locked(folder, fcntl.LOCK_EX, name=".compact.lock"):
        _recover(folder)
        sources = _closed_segments(folder, now)
        if not sources:
            return Compaction(0, 0, ())
        with contextlib.closing(duckdb.connect()) as database:
            database.execute("SET preserve_insertion_order = false")
            rows = _load(database, folder, sources)
            outputs = _outputs(database, sources)
            _write_state(folder, _State(False, sources, list(outputs.values())))
            for hour, output in outputs.items():
                _write_hour(database, hour, folder / output)
        with _locked(folder, fcntl.LOCK_EX):
            _write_state(folder, _State(True, sources, list(outputs.values())))
            _recover(folder)
    return Compaction(len(sources), rows, tuple(folder / output for output in outputs.values()))


def purge_captures(folder: Path, *, before: float) -> int:
    """Delete what is older than `before` (seconds since the epoch), in whole files. Returns how many.

    An hour's file goes once the whole hour is older, a live segment once it was opened before an
    hour earlier. For the retention flow, which keeps the audit record.
    """
    purged = 0
    if not folder.is_dir():
        return purged
    with held_alone(folder):
        for path in sorted(folder.glob("parquet/hour=*/*.parquet")):
            if _hour_start(path.parent.name.removeprefix("hour=")) + 3600 <= before:
                path.unlink()
                purged += 1
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
        purged += purge_segments(folder / "live", opened_before=before - 3600)
    return purged


def _table(folder: Path, *, since: float | None, until: float | None) -> str:
    """A query over every file that counts and may hold the window; file names are ours, quoted."""
    state = _read_state(folder)
    hidden: set[str] = set()
    if state is not None:
        hidden = set(state.sources if state.is_done else state.outputs)
    parquet = [
        path
        for path in sorted(folder.glob("parquet/hour=*/*.parquet"))
        if str(path.relative_to(folder)) not in hidden and _may_hold(path.parent.name, since, until)
    ]
    live = [
        folder / "live" / name.filename
        for name in list_segments(folder / "live")
        if f"live/{name.filename}" not in hidden and (until is None or name.opened_ms < (until + 60) * 1000)
    ]
    columns = ", ".join(f'"{name}"' for name in CAPTURE_COLUMNS)
    parts: list[str] = []
    if parquet:
        parts.append(f"SELECT {columns} FROM read_parquet({quoted(parquet)})")  # noqa: S608
    if live:
        parts.append(_live_query(live))
    if not parts:
        nothing = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in CAPTURE_COLUMNS.items())
        return f"SELECT {nothing} WHERE false"
    return " UNION ALL ".join(parts)


def _draw(
    database: duckdb.DuckDBPyConnection,
    folder: Path,
    window: tuple[float | None, float | None],
    conditions: str,
    values: list[Any],
    *,
    limit: int,
    seed: int,
) -> str:
    """A query for the `limit` rows with the lowest lots that meet the conditions."""
    lot = f"hash(request_id, time, {int(seed)})"
    source = f"FROM ({_table(folder, since=window[0], until=window[1])}) WHERE {conditions}"
    # First the lots alone: two narrow columns. The wide bodies are then read of the drawn rows only.
    row = database.execute(
        f"SELECT max(lot) FROM (SELECT {lot} AS lot {source} ORDER BY lot LIMIT {int(limit)})",  # noqa: S608
        values,
    ).fetchone()
    highest = row[0] if row is not None and row[0] is not None else 0
    return f"SELECT * {source} AND {lot} <= {highest}"


def _live_query(paths: Sequence[Path]) -> str:
    """Segments as a table: the trailer and a torn last line have no time, and are left out."""
    columns = ", ".join(f'"{name}"' for name in CAPTURE_COLUMNS)
    types = ", ".join(f"'{name}': '{kind}'" for name, kind in CAPTURE_COLUMNS.items())
    return (
        f"SELECT {columns} FROM read_json({quoted(paths)}, format='newline_delimited', "  # noqa: S608
        f"columns={{{types}}}, ignore_errors=true, maximum_object_size={_LINE_BYTES_MAX}) "
        "WHERE time IS NOT NULL"
    )


def _conditions(
    since: float | None,
    until: float | None,
    versions: Sequence[str] | None,
    statuses: Sequence[int] | None,
    *,
    with_replays: bool,
) -> tuple[str, list[Any]]:
    conditions, values = ["true"], list[Any]()
    if since is not None:
        conditions.append("time >= ?")
        values.append(since)
    if until is not None:
        conditions.append("time < ?")
        values.append(until)
    if versions is not None:
        conditions.append("list_contains(?::VARCHAR[], version)")
        values.append(list(versions))
    if statuses is not None:
        conditions.append("list_contains(?::SMALLINT[], status)")
        values.append(list(statuses))
    if not with_replays:
        conditions.append("NOT replay")
    return " AND ".join(conditions), values


def _closed_segments(folder: Path, now: float) -> list[str]:
    """Segments that nobody will write to again, oldest first, up to `COMPACT_BYTES_MAX`."""
    names = sorted(list_segments(folder / "live"), key=lambda name: (name.opened_ms, name))
    last = {name.writer: name.sequence for name in sorted(names)}
    sources: list[str] = []
    total = 0
    for name in names:
        path = folder / "live" / name.filename
        if name.sequence < last[name.writer] or _is_closed(path, name, now):
            total += path.stat().st_size
            if sources and total > COMPACT_BYTES_MAX:
                break
            sources.append(f"live/{name.filename}")
    return sources


def _is_closed(path: Path, name: SegmentName, now: float) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(TRAILER)))
        if file.read() == TRAILER:
            return True
    return now - max(path.stat().st_mtime, name.opened_ms / 1000) > _ABANDONED_AFTER_S


def _load(database: duckdb.DuckDBPyConnection, folder: Path, sources: list[str]) -> int:
    query = _live_query([folder / source for source in sources])
    hour = "strftime(make_timestamp(CAST(time * 1e6 AS BIGINT)), '%Y-%m-%dT%H')"
    database.execute(f"CREATE TABLE batch AS SELECT *, {hour} AS hour FROM ({query})")  # noqa: S608
    row = database.execute("SELECT count(*) FROM batch").fetchone()
    return int(row[0]) if row is not None else 0


def _outputs(database: duckdb.DuckDBPyConnection, sources: list[str]) -> dict[str, str]:
    """Hour to output. The name follows from the sources: a repeated attempt writes the same file."""
    digest = hashlib.sha256("\n".join(sources).encode()).hexdigest()[:20]
    hours = [str(row[0]) for row in database.execute("SELECT DISTINCT hour FROM batch ORDER BY 1").fetchall()]
    return {hour: f"parquet/hour={hour}/part-{digest}.parquet" for hour in hours}


def _write_hour(database: duckdb.DuckDBPyConnection, hour: str, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = str(path).replace("'", "''")
    database.execute(
        "COPY (SELECT * EXCLUDE (hour) FROM batch WHERE hour = ? ORDER BY time, request_id) "  # noqa: S608
        f"TO '{target}' (FORMAT parquet, COMPRESSION zstd)",
        [hour],
    )
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _recover(folder: Path) -> None:
    """Finish a compaction that was committed, take back one that was not."""
    state = _read_state(folder)
    if state is None:
        return
    for name in state.sources if state.is_done else state.outputs:
        (folder / name).unlink(missing_ok=True)
    _state_path(folder).unlink(missing_ok=True)


def _state_path(folder: Path) -> Path:
    return folder / "compaction.json"


def _read_state(folder: Path) -> _State | None:
    try:
        document = json.loads(_state_path(folder).read_text())
    except FileNotFoundError:
        return None
    return _State(bool(document["done"]), list(document["sources"]), list(document["outputs"]))


def _write_state(folder: Path, state: _State) -> None:
    """Atomic and durable: replacing the file with one that says done is the moment of commitment."""
    draft = folder / "compaction.json.new"
    with draft.open("w") as file:
        json.dump({"done": state.is_done, "sources": state.sources, "outputs": state.outputs}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(_state_path(folder))


@contextlib.contextmanager
def open_bounded() -> Generator[duckdb.DuckDBPyConnection]:
    """A database that reads in bounded memory, with no more threads than that memory is shared well by."""
    import duckdb

    with contextlib.closing(duckdb.connect()) as database:
        database.execute(f"SET memory_limit = '{READ_MEMORY_MIB}MiB'")
        database.execute(f"SET threads = {min(READ_THREADS_MAX, os.cpu_count() or 1)}")
        database.execute("SET preserve_insertion_order = false")
        yield database


@contextlib.contextmanager
def held_alone(folder: Path) -> Generator[None]:
    """No reader, no compaction; what a killed compaction left is settled first. Writers go on."""
    with _locked(folder, fcntl.LOCK_EX, name=".compact.lock"), _locked(folder, fcntl.LOCK_EX):
        _recover(folder)
        yield


@contextlib.contextmanager
def _locked(folder: Path, kind: int, *, name: str = ".lock") -> Generator[None]:
    if not folder.is_dir():
        yield
        return
    with (folder / name).open("a") as file:
        fcntl.flock(file, kind)
        yield


def _may_hold(partition: str, since: float | None, until: float | None) -> bool:
    start = _hour_start(partition.removeprefix("hour="))
    return (since is None or start + 3600 > since) and (until is None or start < until)


def _hour_start(hour: str) -> float:
    return datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp()


def quoted(paths: Sequence[Path]) -> str:
    """File names as a list of DuckDB's."""
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths) + "]"
