"""Redaction: columns are dropped or hashed before anything durable sees them.

What cannot be understood cannot be redacted, so it is not recorded at all: every function here
returns None for it, and the caller stores the record without that body. Standard library only.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

_HEX_CHARS = 32
_encode = json.JSONEncoder(separators=(",", ":")).encode  # dumps() would make an encoder each time


@dataclass(frozen=True, slots=True)
class Redaction:
    """Which named columns are dropped or hashed, the key of the hash, and which personal data goes.

    A name applies to every place it can stand in: a column of a frame, a key of a record, a key
    of a nested object. Rows without names are refused (None), since nobody can tell what is what.
    """

    drop: frozenset[str] = frozenset()
    hash: frozenset[str] = frozenset()
    key: bytes = b""
    personal: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, drop: Collection[str], hashed: Collection[str], key: bytes, personal: Collection[str] = ()
    ) -> Redaction:
        """A redaction, checked: hashing without a key would be reversible by guessing."""
        if hashed and not key:
            raise ValueError(
                f"Columns to hash: {sorted(hashed)}, but no key. Next: give the capture an hmac_key_file."
            )
        return cls(frozenset(drop), frozenset(hashed), key, tuple(personal))

    def __bool__(self) -> bool:
        """Whether there is anything to redact."""
        return bool(self.drop or self.hash or self.personal)

    def request(self, body: bytes, content_type: str) -> str | None:
        """The redacted request as text, or None where it cannot be redacted."""
        if not self:
            return _text(body)
        try:
            if content_type.partition(";")[0].strip().lower() == "text/csv":
                return self._csv(body.decode())
            document = json.loads(body)
            if not isinstance(document, dict) or _has_unnamed_rows(cast("dict[str, Any]", document)):
                return None
            return _encode(self._impersonal(self._value(document)))
        except (ValueError, TypeError, KeyError, RecursionError, csv.Error):
            return None

    def response(self, body: bytes, status: int) -> str | None:
        """The redacted response as text. Error texts may quote a value, so they are not kept."""
        if not self:
            return _text(body)
        if status != 200:
            return None
        try:
            return _encode(self._impersonal(self._value(json.loads(body))))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    def digest(self, column: str, value: object) -> str:
        """The HMAC of one value. The column's name is part of it: equal values of two columns differ."""
        message = f"{column}\0{json.dumps(value, sort_keys=True)}".encode()
        return hmac.digest(self.key, message, hashlib.sha256).hex()[:_HEX_CHARS]

    def _impersonal(self, document: Any) -> Any:
        """Without the personal data in its texts. Needs Presidio, which servers that are not ours lack."""
        if not self.personal:
            return document
        from serving.capture.impersonal import without_personal

        return without_personal(document, self.personal)

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            mapping = cast("dict[str, Any]", value)
            if "columns" in mapping and "data" in mapping:
                return self._split(mapping)
            return {
                name: self._hashed(name, inner) if name in self.hash else self._value(inner)
                for name, inner in mapping.items()
                if name not in self.drop
            }
        if isinstance(value, list):
            return [self._value(inner) for inner in cast("list[Any]", value)]
        return value

    def _hashed(self, name: str, value: Any) -> Any:
        """A column of `inputs` holds a list of values: each is hashed on its own."""
        if isinstance(value, list):
            return [self._hashed(name, inner) for inner in cast("list[Any]", value)]
        return self.digest(name, value)

    def _split(self, frame: dict[str, Any]) -> dict[str, Any]:
        columns: list[Any] = frame["columns"]
        kept = [i for i, name in enumerate(columns) if name not in self.drop]
        rows: list[list[Any]] = []
        for row in frame["data"]:
            if not isinstance(row, list) or len(cast("list[Any]", row)) != len(columns):
                raise ValueError("rows do not fit their columns")
            values = cast("list[Any]", row)
            rows.append(
                [
                    self.digest(columns[i], values[i]) if columns[i] in self.hash else self._value(values[i])
                    for i in kept
                ]
            )
        return {"columns": [columns[i] for i in kept], "data": rows}

    def _csv(self, text: str) -> str:
        header, *rows = list(csv.reader(io.StringIO(text), strict=True))
        kept = [i for i, name in enumerate(header) if name not in self.drop]
        rows = self._impersonal(rows)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([header[i] for i in kept])
        for row in rows:
            if len(row) != len(header):
                raise ValueError("rows do not fit their header")
            writer.writerow(
                [self.digest(header[i], row[i]) if header[i] in self.hash else row[i] for i in kept]
            )
        return out.getvalue()


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None


def _has_unnamed_rows(document: dict[str, Any]) -> bool:
    """Whether inputs come without names: `instances: [[...]]`, a tensor, a frame without columns."""
    split: Any = document.get("dataframe_split")
    if split is not None and not (isinstance(split, dict) and "columns" in split):
        return True
    for name in ("instances", "inputs", "dataframe_records"):
        value: Any = document.get(name)
        if value is None or isinstance(value, dict):
            continue
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in cast("list[Any]", value)):
            return True
    return False
