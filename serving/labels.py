"""Labels that arrived later, joined to the requests they are about: a table beside the journal.

The first label of a row stands: storing it again changes nothing, and another one for the same
row is refused by the table and reported by the caller. Rows are numbered in the order in which they
were committed, so a number is a complete memory of what was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from serving.database import lock_for_writing, open_engine, read_url, translated, write_back

_TABLES = sa.MetaData()
_LABELS = sa.Table(
    "labels",
    _TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("endpoint", sa.String(40), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("row", sa.Integer, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("score", sa.Float, nullable=True),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("user", sa.String(64), nullable=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("labelled_at", sa.Float, nullable=False),
    sa.UniqueConstraint("endpoint", "request_id", "row"),
    sa.Index("labels_by_time", "endpoint", "time"),
    sqlite_autoincrement=True,  # a number is never given twice, also after the newest were forgotten
)
_KEYS_AT_ONCE = 500

Key = tuple[str, int]
"""A request's id and the number of its row."""


@dataclass(frozen=True, slots=True)
class Label:
    """The truth about one row of a request.

    `label` is its text. `score` is None where the answer cannot be compared with it. `time` is when
    the request arrived, `labelled_at` when the truth was known (seconds since the epoch).
    """

    endpoint: str
    request_id: str
    row: int
    label: str
    score: float | None
    version: str
    user: str
    time: float
    labelled_at: float


@dataclass(frozen=True, slots=True)
class Performance:
    """A version's true performance in an interval from `starts_at` on; `delay_s`: the labels' mean delay."""

    version: str
    starts_at: float
    labels: int
    score: float
    delay_s: float


class LabelBook:
    """All access to the labels. Every method is one short transaction; raises `PlatformUnavailable`."""

    def __init__(self, url: str) -> None:
        self._url = read_url(url)
        self._engine = open_engine(self._url, _TABLES)

    def close(self) -> None:
        """Release the database connections."""
        self._engine.dispose()

    def known(self, endpoint: str, request_ids: Sequence[str]) -> dict[Key, str]:
        """The labels that these requests have already."""
        found: dict[Key, str] = {}
        for part in _parts(request_ids):
            mine = sa.and_(_LABELS.c.endpoint == endpoint, _LABELS.c.request_id.in_(part))
            query = sa.select(_LABELS.c.request_id, _LABELS.c.row, _LABELS.c.label).where(mine)
            found |= {(str(name), int(row)): str(label) for name, row, label in self._rows(query)}
        return found

    def add(self, labels: Sequence[Label]) -> int:
        """Store those of rows that have none yet. Returns how many were new."""
        if not labels:
            return 0
        with self._translated(), self._engine.begin() as connection:
            # numbers must be committed in their order: a reader that saw 7 must not miss 6
            lock_for_writing(connection, _LABELS.name)
            taken: set[Key] = set()
            for part in _parts([label.request_id for label in labels]):
                query = sa.select(_LABELS.c.request_id, _LABELS.c.row).where(
                    _LABELS.c.endpoint == labels[0].endpoint, _LABELS.c.request_id.in_(part)
                )
                taken |= {(str(name), int(row)) for name, row in connection.execute(query)}
            new = {
                (label.request_id, label.row): label
                for label in reversed(labels)
                if (label.request_id, label.row) not in taken
            }
            if new:
                connection.execute(sa.insert(_LABELS), [asdict(label) for label in reversed(new.values())])
        return len(new)

    def newest(self, endpoint: str) -> int:
        """The number of the newest label, 0 without any."""
        query = sa.select(sa.func.max(_LABELS.c.id)).where(_LABELS.c.endpoint == endpoint)
        return int(self._rows(query)[0][0] or 0)

    def scores_after(
        self, endpoint: str, number: int, *, version: str, limit: int
    ) -> tuple[list[float], int]:
        """Scores of a version's answers stored after a number, in their order, and the number read to."""
        query = (
            sa.select(_LABELS.c.id, _LABELS.c.version, _LABELS.c.score)
            .where(_LABELS.c.endpoint == endpoint, _LABELS.c.id > number)
            .order_by(_LABELS.c.id)
            .limit(limit)
        )
        rows = self._rows(query)
        scores = [float(score) for _, made_by, score in rows if made_by == version and score is not None]
        return scores, int(rows[-1][0]) if rows else number

    def scores_by_request(self, endpoint: str, after: int, until: int) -> dict[str, float]:
        """Mean score by request id of the labels stored after a number, up to and with another."""
        query = (
            sa.select(_LABELS.c.request_id, sa.func.avg(_LABELS.c.score))
            .where(
                _LABELS.c.endpoint == endpoint,
                _LABELS.c.id > after,
                _LABELS.c.id <= until,
                _LABELS.c.score.is_not(None),
            )
            .group_by(_LABELS.c.request_id)
        )
        return {str(name): float(score) for name, score in self._rows(query)}

    def scores_between(self, endpoint: str, *, version: str, since: float, until: float) -> list[float]:
        """Scores of a version's answers to requests that arrived in `since <= time < until`."""
        query = sa.select(_LABELS.c.score).where(
            _LABELS.c.endpoint == endpoint,
            _LABELS.c.version == version,
            _LABELS.c.time >= since,
            _LABELS.c.time < until,
            _LABELS.c.score.is_not(None),
        )
        return [float(score) for (score,) in self._rows(query)]

    def recent(self, endpoint: str, *, version: str, since: float, limit: int) -> list[Label]:
        """The newest scored labels of a version's answers to requests since a moment, newest first."""
        query = (
            sa.select(*[_LABELS.c[name] for name in Label.__dataclass_fields__])
            .where(
                _LABELS.c.endpoint == endpoint,
                _LABELS.c.version == version,
                _LABELS.c.time >= since,
                _LABELS.c.score.is_not(None),
            )
            .order_by(_LABELS.c.id.desc())
            .limit(limit)
        )
        return [Label(*row) for row in self._rows(query)]

    def performance(
        self, endpoint: str, *, bucket_s: float, since: float = 0.0, stored_after: int = 0
    ) -> list[Performance]:
        """Mean score by version and interval of arrival, oldest first.

        With `stored_after` only the intervals that got labels after that number: what has changed.
        """
        bucket = sa.cast(sa.func.floor(_LABELS.c.time / bucket_s), sa.Integer)
        mine = sa.and_(_LABELS.c.endpoint == endpoint, _LABELS.c.time >= since, _LABELS.c.score.is_not(None))
        query = (
            sa.select(
                _LABELS.c.version,
                bucket,
                sa.func.count(),
                sa.func.avg(_LABELS.c.score),
                sa.func.avg(_LABELS.c.labelled_at - _LABELS.c.time),
            )
            .where(mine)
            .group_by(_LABELS.c.version, bucket)
            .having(sa.func.max(_LABELS.c.id) > stored_after)
            .order_by(bucket, _LABELS.c.version)
        )
        return [
            Performance(str(version), int(number) * bucket_s, int(count), float(score), float(delay))
            for version, number, count, score, delay in self._rows(query)
        ]

    def forget(self, endpoint: str, user: str) -> int:
        """Delete the labels of a user's requests (`user` as the captures have it). Returns how many."""
        return self._delete(sa.and_(_LABELS.c.endpoint == endpoint, _LABELS.c.user == user))

    def purge(self, endpoint: str, *, before: float) -> int:
        """Delete the labels of requests that arrived before a moment. Returns how many."""
        return self._delete(sa.and_(_LABELS.c.endpoint == endpoint, _LABELS.c.time < before))

    def _delete(self, which: sa.ColumnElement[bool]) -> int:
        with self._translated():
            with self._engine.begin() as connection:
                deleted = connection.execute(sa.delete(_LABELS).where(which)).rowcount
            write_back(self._engine)
        return deleted

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._translated(), self._engine.connect() as connection:
            return connection.execute(query).all()

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._url)


def _parts(request_ids: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(request_ids), _KEYS_AT_ONCE):
        yield request_ids[start : start + _KEYS_AT_ONCE]
