"""The guard: takes a share back that nobody renewed, on platforms that hold no lease themselves.

The local gateway ends a lease by itself. A managed platform follows its weights until somebody
changes them, so this runs on a schedule of its own, apart from the release that it guards. It needs
the journal and the platform, nothing else; without the journal it goes by what the platform was
told itself.
"""

from __future__ import annotations

import dataclasses
import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from serving.errors import Fenced, PlatformUnavailable, ServingError
from tasks.alerts import alert
from tasks.bench import Bench
from tasks.changes import follow_journal

_LOG = logging.getLogger("interlock.guard")


@task(name="guard", cache_policy=NO_CACHE)
def guard_endpoint(endpoint: str) -> str:
    """Guard one endpoint by its name. Returns what was done, "" where there was nothing to do."""
    return guard(Bench.open(endpoint))


def guard(bench: Bench) -> str:
    """Return the traffic of a share that ran out. Raises what the platform raises, after telling a person.

    A share that the journal no longer knows (a generation that was never followed) goes back as well.
    """
    if bench.endpoint.capabilities.has_lease:
        return ""
    try:
        return _take_back(bench)
    except Fenced:
        return ""  # somebody newer is in charge
    except ServingError as error:
        alert(
            bench,
            "critical",
            f"the guard cannot reach the platform, and a share may have run out: {error}",
            numbers={},
            next_step=f"interlock status {bench.name}, interlock doctor",
            key="guard blind",
        )
        raise


def _take_back(bench: Bench) -> str:
    now = bench.clock()
    live = bench.endpoint.describe().route
    if live is None or live.share_bp == 0:
        return ""
    try:
        row = bench.row()
    except PlatformUnavailable as error:
        if live.until > now:
            return ""
        _LOG.warning("%s: the journal is away (%s); going by the platform's own record", bench.name, error)
        bench.endpoint.apply(dataclasses.replace(live, share_bp=0, until=0.0))
        return f"{bench.name}: {live.share_bp / 100:g}% that nobody renewed went back to the champion"
    if row.share_bp > 0 and row.until > now and row.generation == live.generation:
        return ""
    follow_journal(bench)
    what = f"{live.share_bp / 100:g}% that nobody renewed went back to the champion"
    bench.journal.record(bench.name, "guarded", who="guard", now=now, release_id=row.release_id, note=what)
    return f"{bench.name}: {what}"
