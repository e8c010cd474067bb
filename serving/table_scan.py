"""Tables wherever they lie, scanned in batches: a seeded sample of at most so many rows is kept.

Parquet (files, folders), CSV and JSON lines, from a local path, an object store (s3://, gs://, through Arrow,
with the clouds' default credentials), an address (https://, downloaded first) or any other scheme
that fsspec knows. Memory is bounded by twice the sample, not by the file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serving.errors import SetupError
from serving.table_download import DataUnavailable, Downloaded, downloaded, shown

if TYPE_CHECKING:
    import pandas as pd

_BATCH_ROWS = 65_536
_CSV = frozenset({".csv", ".tsv"})
_JSON_LINES = frozenset({".jsonl", ".ndjson"})
_PACKED = {".gz": "gzip", ".zip": "zip", ".bz2": "bz2", ".zst": "zstd"}
_GS_PATIENCE_S = 30
"""Google's client asks again for 15 minutes by default, and says nothing meanwhile."""

_PASSING = (
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "Status(UNAVAILABLE",
    "timed out",
    "Timeout",
)
_FORBIDDEN = (
    "ACCESS_DENIED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "INVALID_ACCESS_KEY",
    "SIGNATURE_DOES_NOT",
)


@dataclass(frozen=True, slots=True)
class Scan:
    """Rows that were kept, in the file's order. `numbers` (n,) count the file's rows from 0.

    `modified_at` is in seconds since the epoch, None where the store does not say.
    """

    frame: pd.DataFrame
    numbers: NDArray[np.int64]
    total: int
    modified_at: float | None


def scan_table(
    location: str,
    *,
    rows: int,
    seed: int = 0,
    tell: Callable[[int, int | None], object] = lambda read, total: None,
) -> Scan:
    """Read a table, sampled down to `rows` (the same rows for the same seed and file).

    `tell` hears after each batch how many rows were read, and of how many where that is known.
    Raises `SetupError` for what is not there or no table, `DataUnavailable` where asking again may help.
    """
    is_address = location.startswith(("http://", "https://"))
    fetch = downloaded(location, lambda: tell(0, None)) if is_address else nullcontext(None)
    with fetch as fetched, _translated(location):
        filesystem, path = _open(location if fetched is None else str(fetched.path))
        info: Any = filesystem.get_file_info(path)
        if info.type.name == "NotFound":
            raise SetupError(
                f"{shown(location)} does not exist. Next: correct the path, or put the table there"
            )
        kept = _Kept(rows, np.random.default_rng(seed))
        batches, total = _batches(filesystem, path, is_file=info.type.name == "File")
        for batch in batches:
            kept.add(batch)
            tell(kept.seen, total)
        frame, numbers = kept.rows()
        return Scan(frame, numbers, kept.seen, _modified(filesystem, info, fetched))


class _Kept:
    """The rows with the smallest random keys: a uniform sample of a stream whose length is unknown."""

    def __init__(self, most: int, rng: np.random.Generator) -> None:
        self.seen = 0
        self._most = most
        self._rng = rng
        self._parts: list[tuple[Any, NDArray[np.float64], NDArray[np.int64]]] = []
        self._held = 0
        self._highest = np.inf

    def add(self, batch: Any) -> None:
        """Take a batch in; what can no longer be among the smallest is let go at once."""
        count = len(batch)
        keys = self._rng.random(count)
        numbers = np.arange(self.seen, self.seen + count)
        self.seen += count
        chosen = np.flatnonzero(keys < self._highest)
        if chosen.size:
            self._parts.append((_take(batch, chosen), keys[chosen], numbers[chosen]))
            self._held += int(chosen.size)
        if self._held > 2 * self._most:
            self._prune()

    def rows(self) -> tuple[pd.DataFrame, NDArray[np.int64]]:
        """What is kept, in the order in which it came."""
        import pandas as pd

        if self._held > self._most:
            self._prune()
        frames = [_to_pandas(part) for part, _, _ in self._parts]
        frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        numbers = [numbers for _, _, numbers in self._parts]
        return frame, np.concatenate(numbers) if numbers else np.zeros(0, np.int64)

    def _prune(self) -> None:
        keys = np.concatenate([keys for _, keys, _ in self._parts])
        self._highest = float(np.partition(keys, self._most)[self._most])
        pruned: list[tuple[Any, NDArray[np.float64], NDArray[np.int64]]] = []
        for part, part_keys, numbers in self._parts:
            chosen = np.flatnonzero(part_keys < self._highest)
            if chosen.size:
                pruned.append((_take(part, chosen), part_keys[chosen], numbers[chosen]))
        self._parts = pruned
        self._held = sum(len(part_keys) for _, part_keys, _ in pruned)


def _open(location: str) -> tuple[Any, str]:
    """Arrow's filesystem and the path in it."""
    from pyarrow import fs

    scheme, separator, _ = location.partition("://")
    if not separator:
        return fs.LocalFileSystem(), location
    if scheme == "gs" and "retry_limit_seconds=" not in location:
        location += f"{'&' if '?' in location else '?'}retry_limit_seconds={_GS_PATIENCE_S}"
    if scheme in ("s3", "gs", "file"):
        found: tuple[Any, str] = fs.FileSystem.from_uri(location)
        return found
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(location)
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _modified(filesystem: Any, info: Any, fetched: Downloaded | None) -> float | None:
    """When the table was last written, in seconds since the epoch; a folder's newest file says it."""
    if fetched is not None:
        return fetched.modified_at
    found = [info]
    if info.type.name == "Directory":
        from pyarrow import fs

        found = filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
    times = [one.mtime.timestamp() for one in found if one.type.name == "File" and one.mtime is not None]
    return max((time for time in times if time > 0), default=None)  # 0 is how Arrow says that it knows none


def _batches(filesystem: Any, path: str, *, is_file: bool) -> tuple[Iterator[Any], int | None]:
    """The table in parts, and how many rows it has where that is known without reading it."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path.partition("?")[0]).suffixes[-2:]]
    packed = _PACKED.get(suffixes[-1]) if suffixes else None
    kind = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if is_file and kind in _CSV:
        return _csv(filesystem, path, packed, "\t" if kind == ".tsv" else ","), None
    if is_file and kind in _JSON_LINES:
        return _json_lines(filesystem, path, packed), None
    from pyarrow import dataset

    found: Any = dataset.dataset(path, filesystem=filesystem, format="parquet")
    return (batch for batch in found.to_batches(batch_size=_BATCH_ROWS)), int(found.count_rows())


def _csv(filesystem: Any, path: str, packed: str | None, separator: str) -> Iterator[Any]:
    """Types are found batch by batch and joined: whole numbers and broken ones make a column of floats."""
    import pandas as pd

    with filesystem.open_input_file(path) as source:
        read: Any = pd.read_csv
        reader = read(source, sep=separator, chunksize=_BATCH_ROWS, compression=packed, low_memory=False)
        yield from reader


def _json_lines(filesystem: Any, path: str, packed: str | None) -> Iterator[Any]:
    """Texts stay texts: pandas would make dates of some and numbers of others."""
    import pandas as pd

    with filesystem.open_input_file(path) as source:
        read: Any = pd.read_json
        yield from read(
            source, lines=True, chunksize=_BATCH_ROWS, compression=packed, dtype=False, convert_dates=False
        )


def _take(batch: Any, chosen: NDArray[np.int64]) -> Any:
    if len(batch) == chosen.size:
        return batch
    return batch.iloc[chosen] if hasattr(batch, "iloc") else batch.take(_arrow(chosen))


def _arrow(values: NDArray[np.int64]) -> Any:
    import pyarrow

    return pyarrow.array(values)


def _to_pandas(part: Any) -> pd.DataFrame:
    return part if hasattr(part, "iloc") else part.to_pandas()


@contextmanager
def _translated(location: str) -> Generator[None]:
    """Foreign errors, once."""
    import pandas as pd
    import pyarrow

    try:
        yield
    except pd.errors.EmptyDataError as error:
        raise SetupError(
            f"{shown(location)} is empty. Next: write the rows there, with a line of names"
        ) from error
    except (ImportError, pyarrow.ArrowNotImplementedError) as error:
        raise SetupError(
            f"{shown(location)} needs a driver that is not installed ({error}). Next: install it, or use "
            "a path, s3://, gs:// or https://"
        ) from error
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        said = " ".join(str(error).partition("error_info=")[0].split())
        if any(word in said for word in _PASSING):
            raise DataUnavailable(
                f"{shown(location)}: its store does not answer ({said[:200]}). Next: see whether it is up, "
                "and whether this machine may reach it and has credentials for it"
            ) from error
        step = "check the path, and that it is parquet, CSV or JSON lines"
        if isinstance(error, PermissionError) or any(word in said for word in _FORBIDDEN):
            step = "let this account read it, or name other credentials in the environment"
        raise SetupError(
            f"{shown(location)} could not be read ({error.__class__.__name__}: {said[:200]}). Next: {step}"
        ) from error
