"""A head start: the candidate's replicas start while it is still evaluated, where the policy wants it.

It gives no share and decides nothing. The stage that places the candidate comes in its turn, finds it
standing, and says what is wrong where the head start failed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

from tasks import transitions
from tasks.guard_schedule import stand_guard
from tasks.release import Release

_LOG = logging.getLogger("interlock.early_start")


@contextmanager
def starting_early(release: Release) -> Generator[None]:
    """Start the candidate beside what runs inside; leaving waits until it stands or could not start.

    Waits also where the inside raised: what ends the release then finds the slot at rest. Only a process
    that is told to end does not wait: nothing more happens to the release in it, and whoever goes on with
    that places the candidate again. A first champion is not started early, for nothing may stand in the
    default slot before it has passed.
    """
    if release.first or release.judged_in_place or not release.bench.policy.replicas.start_early:
        yield
        return
    thread = threading.Thread(target=_start, args=(release,), name=f"start-{release.row.id}", daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        thread.join()
        raise
    thread.join()


def _start(release: Release) -> None:
    bench = release.bench
    try:
        stand_guard(bench)
        transitions.place(bench, release.row, first=False, word="started early")
        release.meter.look(now=bench.clock(), at_once=True)
    except Exception as error:  # noqa: BLE001 (whatever it is: the candidate is placed again in its turn)
        _LOG.warning("%s: no head start, version %s: %s", bench.name, release.version, error)
