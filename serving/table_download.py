"""A table behind an HTTP address, as a file of its own for as long as it is read.

Whole and once, whatever the server can do: few serve ranges, and sampling reads all of it anyway.
It costs space in the temporary folder, not memory.
"""

from __future__ import annotations

import tempfile
import urllib.parse
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from serving.errors import SetupError, TransientError

if TYPE_CHECKING:
    import httpx

_PIECE_BYTES = 1 << 20
_WAIT_S = 30.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_NEXT = {
    401: "put credentials into the address, or take an address that is signed",
    403: "check the address's signature and its expiry, or who may read it",
    404: "correct the address, or put the table there",
    410: "correct the address, or put the table there",
}
_BY_TYPE = {
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".ndjson",
}


class DataUnavailable(TransientError):
    """The store of the rows does not answer; later it may."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """`path` ends as the table's kind does; `modified_at` in seconds since the epoch, None if not said."""

    path: Path
    modified_at: float | None


def shown(location: str) -> str:
    """An address for people: without the password and the signature that it may carry."""
    scheme, separator, rest = location.partition("://")
    if not separator:
        return location
    place, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


@contextmanager
def downloaded(url: str, check: Callable[[], object]) -> Generator[Downloaded]:
    """The table behind an http or https address. `check` is called for each piece, and may raise.

    Redirects are followed; proxies and certificates are those of the environment. Raises `SetupError`
    for what is refused or not there, `DataUnavailable` where asking again may help.
    """
    import httpx

    with tempfile.TemporaryDirectory(prefix="interlock-table-") as folder:
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=_WAIT_S) as answer:
                _refuse(url, answer.status_code)
                path = Path(folder) / _name(url, answer.headers)
                with path.open("wb") as file:
                    # undone by httpx where the server packed it for the way only
                    for piece in answer.iter_bytes(_PIECE_BYTES):
                        file.write(piece)
                        check()
        except httpx.TransportError as error:
            said = f"{error.__class__.__name__}: {str(error)[:200]}"
            if "CERTIFICATE" in said:
                raise SetupError(
                    f"{shown(url)}: its certificate is not trusted ({said}). Next: name the file of the "
                    "authority in SSL_CERT_FILE"
                ) from error
            raise DataUnavailable(
                f"{shown(url)}: its server does not answer ({said}). Next: see whether it is up, and whether "
                "this machine may reach it"
            ) from error
        except httpx.HTTPError as error:
            raise SetupError(f"{shown(url)} could not be read ({str(error)[:200]})") from error
        yield Downloaded(_unpacked(path), _moment(answer.headers.get("last-modified")))


def _refuse(url: str, status: int) -> None:
    if status == 200:
        return
    text = f"{shown(url)}: its server answered {status}"
    if status in _PASSING:
        raise DataUnavailable(f"{text}. Next: ask again later")
    raise SetupError(f"{text}. Next: {_NEXT.get(status, 'open the address in a browser, and correct it')}")


def _name(url: str, headers: httpx.Headers) -> str:
    """What says of which kind the table is: the end of the address, else the type that the server names."""
    last = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if "." in last:
        return last[-100:]
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return f"table{_BY_TYPE.get(kind, '.parquet')}"


def _unpacked(path: Path) -> Path:
    """The file without `.gz` where the server called its packing the way's, and httpx undid it."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    return path if is_packed or path.suffix.lower() != ".gz" else path.rename(path.with_suffix(""))


def _moment(stamp: str | None) -> float | None:
    try:
        return parsedate_to_datetime(stamp).timestamp() if stamp else None
    except ValueError:
        return None
