"""The journal: who serves what, which release is under way, and everything that was decided.

It is authoritative. A platform's traffic is its effect, MLflow's aliases are its projection.
Two kinds of fence keep stale processes out: every change of an endpoint names the generation it
was decided under, and every change of a release names its owner, whose claim runs out unless
renewed. Both are compare-and-set in one statement, so no lock is ever held across a crash.
SQLite by default, any SQLAlchemy URL otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from serving.database import lock_for_writing, open_engine, read_url, translated
from serving.endpoint import Slot
from serving.errors import Fenced, Refused
from serving.journal_schema import AUDIT, ENDPOINTS, LOOKS, METADATA, RELEASES, STATES
from serving.records import AuditRow, EndpointRow, LookRow, ReleaseRow, ReleaseState, Stage, StateRow

_VALUES_AT_ONCE = 500


class Journal:
    """All access to the journal. Every method is one short transaction.

    Raises `Fenced` where a newer generation or another owner exists, `PlatformUnavailable`
    where the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self._url = read_url(url)
        self._engine = open_engine(self._url, METADATA)

    def close(self) -> None:
        """Release the database connections."""
        self._engine.dispose()

    # -- endpoints ---------------------------------------------------------------------------

    def endpoint(self, name: str) -> EndpointRow | None:
        """One endpoint, None while it never served."""
        rows = self._rows(sa.select(ENDPOINTS).where(ENDPOINTS.c.name == name))
        return _endpoint_row(rows[0]) if rows else None

    def endpoints(self) -> list[EndpointRow]:
        """All endpoints, by name."""
        return [_endpoint_row(row) for row in self._rows(sa.select(ENDPOINTS).order_by(ENDPOINTS.c.name))]

    def create_endpoint(self, name: str, *, now: float) -> EndpointRow:
        """The endpoint's row, made empty at generation 0 where there is none."""
        row = {
            "name": name,
            "generation": 0,
            "default_slot": Slot.BLUE.value,
            "blue_version": "",
            "green_version": "",
            "salt": "0",
            "share_bp": 0,
            "until": 0.0,
            "intent": None,
            "release_id": "",
            "keep_until": 0.0,
            "updated_at": now,
        }
        with self._translated():
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.insert(ENDPOINTS).values(row))
            except exc.IntegrityError:
                pass  # somebody made it first; it is read below either way
        found = self.endpoint(name)
        assert found is not None
        return found

    def change(self, name: str, *, generation: int, now: float, **values: Any) -> EndpointRow:
        """Set columns of an endpoint, provided that its generation is still `generation`.

        Pass `new_generation=` to fence everything older. Raises `Fenced` where it has moved on.
        """
        if "new_generation" in values:
            values["generation"] = values.pop("new_generation")
        statement = (
            sa.update(ENDPOINTS)
            .where(ENDPOINTS.c.name == name, ENDPOINTS.c.generation == generation)
            .values(**values, updated_at=now)
        )
        if self._execute(statement) == 0:
            found = self.endpoint(name)
            at = "does not exist" if found is None else f"is at generation {found.generation}"
            raise Fenced(
                f"{name}: a change decided at generation {generation} came too late, the endpoint {at}. "
                f"Nothing was changed. Next: interlock status {name}"
            )
        found = self.endpoint(name)
        assert found is not None
        return found

    # -- releases ----------------------------------------------------------------------------

    def release(self, release_id: str) -> ReleaseRow | None:
        """One release by its id."""
        rows = self._rows(sa.select(RELEASES).where(RELEASES.c.id == release_id))
        return _release_row(rows[0]) if rows else None

    def releases(self, endpoint: str | None = None, *, version: str | None = None) -> list[ReleaseRow]:
        """Releases, newest first."""
        query = sa.select(RELEASES).order_by(RELEASES.c.started_at.desc())
        if endpoint is not None:
            query = query.where(RELEASES.c.endpoint == endpoint)
        if version is not None:
            query = query.where(RELEASES.c.version == version)
        return [_release_row(row) for row in self._rows(query)]

    def open_release(self, endpoint: str) -> ReleaseRow | None:
        """The endpoint's one release that is not final, or None."""
        return next((row for row in self.releases(endpoint) if not row.state.final), None)

    def add_release(
        self, endpoint: str, version: str, *, champion: str, policy: Mapping[str, Any], now: float
    ) -> ReleaseRow:
        """A new release in state INTERRUPTED, that is: free to be claimed.

        Raises `Refused` while another one of the endpoint is not final.
        """
        with self._translated(), self._engine.begin() as connection:
            lock_for_writing(connection, "releases")
            earlier = (
                connection.execute(sa.select(RELEASES).where(RELEASES.c.endpoint == endpoint))
                .mappings()
                .all()
            )
            active = next((row for row in earlier if not ReleaseState(row["state"]).final), None)
            if active is not None:
                raise Refused(
                    f"{endpoint}: a release of version {version} was asked for, but {active['id']} "
                    f"is {active['state']}. Next: interlock status {endpoint}, or interlock abort {endpoint}"
                )
            attempt = 1 + sum(row["version"] == version for row in earlier)
            values = {
                "id": f"{endpoint}-v{version}-{attempt}",
                "endpoint": endpoint,
                "version": version,
                "champion": champion,
                "state": ReleaseState.INTERRUPTED.value,
                "stage": Stage.EVALUATE.value,
                "reason": "",
                "request": "",
                "owner": "",
                "owner_until": 0.0,
                "flow_run_id": "",
                "mlflow_run_id": "",
                "mlflow_url": "",
                "started_at": now,
                "ended_at": None,
                "decided_at": None,
                "decided_stage": "",
                "policy": dict(policy),
                "verdicts": {},
                "progress": {},
            }
            connection.execute(sa.insert(RELEASES).values(values))
        found = self.release(str(values["id"]))
        assert found is not None
        return found

    def claim(
        self, release_id: str, owner: str, *, lease_s: float, now: float, flow_run_id: str
    ) -> ReleaseRow:
        """Become the release's owner. Raises `Refused` while another owner's claim is running."""
        free = sa.or_(RELEASES.c.owner == "", RELEASES.c.owner == owner, RELEASES.c.owner_until < now)
        final = [state.value for state in ReleaseState if state.final]
        statement = (
            sa.update(RELEASES)
            .where(RELEASES.c.id == release_id, free, RELEASES.c.state.not_in(final))
            .values(
                owner=owner,
                owner_until=now + lease_s,
                state=ReleaseState.RUNNING.value,
                flow_run_id=flow_run_id,
                reason="",
            )
        )
        if self._execute(statement) == 0:
            held = self.release(release_id)
            if held is None or held.state.final:
                raise Refused(f"{release_id} is {held.state if held else 'unknown'} and cannot be run again.")
            raise Refused(
                f"{release_id} is being run by flow run {held.flow_run_id} (its claim lasts "
                f"{max(0.0, held.owner_until - now):.0f} s more). Next: interlock status {held.endpoint}"
            )
        return self._release_or_fenced(release_id)

    def renew(self, release_id: str, owner: str, *, lease_s: float, now: float) -> ReleaseRow:
        """Prolong a claim that is still running. Raises `Fenced` where it ran out or was taken."""
        return self.update_release(release_id, owner, now=now, owner_until=now + lease_s)

    def free(self, release_id: str, owner: str) -> None:
        """End a claim whose holder is known to be gone, so that nobody waits for it to run out."""
        self._execute(
            sa.update(RELEASES)
            .where(RELEASES.c.id == release_id, RELEASES.c.owner == owner)
            .values(owner="", owner_until=0.0)
        )

    def update_release(self, release_id: str, owner: str, *, now: float, **values: Any) -> ReleaseRow:
        """Set columns of a release as its owner. Raises `Fenced` where that has ended."""
        statement = (
            sa.update(RELEASES)
            .where(RELEASES.c.id == release_id, RELEASES.c.owner == owner, RELEASES.c.owner_until >= now)
            .values(**values)
        )
        if self._execute(statement) == 0:
            raise Fenced(
                f"{release_id}: this run's claim ran out or was taken over. Nothing was changed. "
                f"Next: run the release again, it resumes"
            )
        return self._release_or_fenced(release_id)

    def end_release(
        self,
        release_id: str,
        *,
        state: ReleaseState,
        reason: str,
        now: float,
        owner: str | None = None,
        **values: Any,
    ) -> ReleaseRow:
        """Close a release, or free it to be claimed again.

        Whoever owns it, or only while `owner` does. A final state is never left again, but for
        PROMOTED, which a later rollback turns into ROLLED_BACK. A person's request outlives an
        interruption: who asked for an abort gets it from the next run.
        """
        final = [other.value for other in ReleaseState if other.final]
        if state is ReleaseState.ROLLED_BACK:
            final.remove(ReleaseState.PROMOTED.value)
        if state.final:
            values |= {"ended_at": now, "request": ""}
        statement = sa.update(RELEASES).where(RELEASES.c.id == release_id, RELEASES.c.state.not_in(final))
        if owner is not None:
            statement = statement.where(RELEASES.c.owner == owner)
        self._execute(statement.values(**values, state=state.value, reason=reason, owner="", owner_until=0.0))
        return self._release_or_fenced(release_id)

    def ask(self, release_id: str, request: str) -> ReleaseRow:
        """Leave a person's wish ("", "pause" or "abort") for the release's owner; an abort stays one.

        Returns the release with the wish that holds.
        """
        statement = sa.update(RELEASES).where(RELEASES.c.id == release_id)
        if request != "abort":
            statement = statement.where(RELEASES.c.request != "abort")
        self._execute(statement.values(request=request))
        return self._release_or_fenced(release_id)

    # -- looks and audit -----------------------------------------------------------------------

    def add_look(self, look: LookRow) -> None:
        """Store one look. Storing the same again changes nothing; another under its number is `Fenced`."""
        values = {column.name: getattr(look, column.name) for column in fields(look)}
        values["stats"] = json.loads(json.dumps(dict(look.stats)))
        with self._translated():
            try:
                with self._engine.begin() as connection:
                    connection.execute(sa.insert(LOOKS).values(values))
            except exc.IntegrityError:
                stored = next(
                    one for one in self.looks(look.release_id, look.stage) if one.number == look.number
                )
                if stored.cursor_to != look.cursor_to:
                    raise Fenced(f"{look.release_id}: another run has stored look {look.number}") from None

    def looks(self, release_id: str, stage: str) -> list[LookRow]:
        """All looks of one stage, in their order."""
        query = (
            sa.select(LOOKS)
            .where(LOOKS.c.release_id == release_id, LOOKS.c.stage == stage)
            .order_by(LOOKS.c.number)
        )
        return [LookRow(**row) for row in self._rows(query)]

    def record(
        self, endpoint: str, what: str, *, who: str, now: float, release_id: str = "", **details: Any
    ) -> None:
        """Add a line to the trail; it is never changed or removed."""
        plain = json.loads(json.dumps(details, default=str))
        self._execute(
            sa.insert(AUDIT).values(
                time=now, endpoint=endpoint, release_id=release_id, who=who, what=what, details=plain
            )
        )

    def record_once(
        self,
        endpoint: str,
        what: str,
        *,
        since: float,
        unless: Mapping[str, Sequence[str]],
        who: str,
        now: float,
        release_id: str = "",
        **details: Any,
    ) -> bool:
        """Add a line unless a like one was added after `since`. Whether it was added.

        A line is alike whose `what` is the same and whose detail has one of the values given for it
        in `unless`, for every name there. Two processes at once add one line, not two.
        """
        alike = [AUDIT.c.details[name].as_string().in_(values) for name, values in unless.items()]
        query = sa.select(AUDIT.c.id).where(
            AUDIT.c.endpoint == endpoint, AUDIT.c.what == what, AUDIT.c.time > since, *alike
        )
        plain = json.loads(json.dumps(details, default=str))
        with self._translated(), self._engine.begin() as connection:
            lock_for_writing(connection, "releases")
            if connection.execute(query.limit(1)).first() is not None:
                return False
            connection.execute(
                sa.insert(AUDIT).values(
                    time=now, endpoint=endpoint, release_id=release_id, who=who, what=what, details=plain
                )
            )
        return True

    def audit(
        self, endpoint: str | None = None, *, what: Sequence[str] = (), since: float = 0.0, limit: int = 200
    ) -> list[AuditRow]:
        """The trail, newest first; with `what` only lines of these kinds."""
        query = sa.select(AUDIT).where(AUDIT.c.time >= since).order_by(AUDIT.c.id.desc()).limit(limit)
        if endpoint is not None:
            query = query.where(AUDIT.c.endpoint == endpoint)
        if what:
            query = query.where(AUDIT.c.what.in_(what))
        return [_audit_row(row) for row in self._rows(query)]

    def audit_of(self, endpoint: str, what: str, detail: str, values: Sequence[str]) -> list[AuditRow]:
        """All lines of one kind whose detail has one of these values, oldest first."""
        lines = sa.select(AUDIT).where(AUDIT.c.endpoint == endpoint, AUDIT.c.what == what)
        found: list[AuditRow] = []
        for start in range(0, len(values), _VALUES_AT_ONCE):
            part = values[start : start + _VALUES_AT_ONCE]
            query = lines.where(AUDIT.c.details[detail].as_string().in_(part)).order_by(AUDIT.c.id)
            found += [_audit_row(row) for row in self._rows(query)]
        return found

    def state(self, endpoint: str, kind: str) -> StateRow | None:
        """What was stored last under this kind, None before the first time."""
        found = self._rows(sa.select(STATES).where(STATES.c.endpoint == endpoint, STATES.c.kind == kind))
        return StateRow(**found[0]) if found else None

    def put_state(
        self, endpoint: str, kind: str, value: Mapping[str, Any], *, after: int, now: float
    ) -> StateRow:
        """Store the step after number `after` (0: the first). Raises `Fenced` where another run was first."""
        row = StateRow(endpoint, kind, after + 1, now, json.loads(json.dumps(value)))
        values = {column.name: getattr(row, column.name) for column in fields(row)}
        mine = sa.and_(STATES.c.endpoint == endpoint, STATES.c.kind == kind, STATES.c.number == after)
        statement = sa.insert(STATES) if after == 0 else sa.update(STATES).where(mine)
        try:
            written = self._execute(statement.values(values))
        except exc.IntegrityError:
            written = 0
        if written == 0:
            raise Fenced(f"{endpoint}: another run has stored step {after + 1} of its {kind}.")
        return row

    # -- inside ----------------------------------------------------------------------------------

    def _release_or_fenced(self, release_id: str) -> ReleaseRow:
        found = self.release(release_id)
        if found is None:
            raise Fenced(f"release {release_id} is not in the journal {self._url.render_as_string()}")
        return found

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._translated(), self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _execute(self, statement: sa.Update | sa.Insert) -> int:
        with self._translated(), self._engine.begin() as connection:
            return connection.execute(statement).rowcount

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._url)


def _audit_row(row: Mapping[str, Any]) -> AuditRow:
    return AuditRow(**{key: value for key, value in row.items() if key != "id"})


def _endpoint_row(row: Mapping[str, Any]) -> EndpointRow:
    return EndpointRow(**row)


def _release_row(row: Mapping[str, Any]) -> ReleaseRow:
    values = dict(row)
    values["state"] = ReleaseState(values["state"])
    values["stage"] = Stage(values["stage"])
    return ReleaseRow(**values)
