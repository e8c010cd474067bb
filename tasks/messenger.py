"""Carries alerts out of this process, beside whatever raised them.

Each alert has a thread of its own with bounded waits, so that a server that hangs can delay a
process only at its very end, and there by seconds. What became of it stands in the trail. An
alert is sent at least once: what did not arrive the sweep sends again, for a while.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from configs.settings import Settings
from serving.errors import ServingError
from serving.journal import Journal
from tasks.delivery import deliver
from tasks.messages import ALERT, NOT_SENT, SENT, Alert
from tasks.rest import prefect_api

if TYPE_CHECKING:
    from tasks.bench import Bench

_LOG = logging.getLogger("interlock.messenger")
EVENT = "interlock.alert"
"""The Prefect event of an alert; automations and a user's own deployments can act on it."""
_LEAVE_AFTER_S = 15.0


class Messenger:
    """Sends alerts: a Prefect event, and a message to each address. Never raises."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock

    def send(self, alert: Alert, timeout_s: float) -> None:
        """Start sending and return at once."""
        if alert.addresses:
            _aside(lambda: self.send_now(alert, timeout_s))
        _aside(lambda: self._emit(alert))

    def send_now(self, alert: Alert, timeout_s: float) -> Mapping[str, str]:
        """Send to its addresses and write down what came of each: why it did not arrive, "" where it did."""
        outcomes = deliver(self._settings, alert, alert.addresses, timeout_s)
        for address, trouble in outcomes.items():
            if trouble:
                _LOG.warning("an alert did not reach %s: %s", address, trouble)
        journal = Journal(self._settings.journal)
        try:
            for address, trouble in outcomes.items():
                _write_down(journal, alert, address, trouble, now=self._clock())
        except ServingError as error:
            _LOG.warning("what became of an alert was not written down: %s", error)
        finally:
            journal.close()
        return outcomes

    def _emit(self, alert: Alert) -> None:
        try:
            prefect_api(self._settings).call("POST", "/events", [event_body(alert)], repeatable=True)
        except ServingError as error:
            _LOG.warning("Prefect did not take the event of an alert: %s", error)


def send_again(bench: Bench) -> list[str]:
    """Send what no address acknowledged, as long as the policy says. Returns what was done.

    Alerts young enough to be still under way are left alone.
    """
    now, notify = bench.clock(), bench.policy.notify
    since = now - notify.retry_for_s
    got = {
        (line.details["id"], line.details["address"])
        for line in bench.journal.audit(bench.name, what=(SENT,), since=since, limit=1000)
    }
    said: list[str] = []
    for line in reversed(bench.journal.audit(bench.name, what=(ALERT,), since=since)):
        alert = Alert.of(line)
        left = tuple(address for address in alert.addresses if (alert.id, address) not in got)
        if left and now - alert.time > 2 * notify.timeout_s:
            outcomes = bench.messenger.send_now(replace(alert, addresses=left), notify.timeout_s)
            arrived = [address for address, trouble in outcomes.items() if not trouble]
            said += [f"{bench.name}: sent '{alert.what}' again to {', '.join(arrived)}"] if arrived else []
    return said


def event_body(alert: Alert) -> dict[str, Any]:
    """The event in the form that Prefect's API takes. Its id is the alert's: sent twice, it counts once."""
    payload = {name: getattr(alert, name) for name in alert.__slots__}
    return {
        "id": alert.id,
        "occurred": datetime.fromtimestamp(alert.time, tz=UTC).isoformat(),
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"interlock.endpoint.{alert.endpoint}",
            "prefect.resource.name": alert.endpoint,
            "interlock.severity": alert.severity,
            "interlock.key": alert.key,
        },
        "related": [],
        "payload": payload,
    }


def _write_down(journal: Journal, alert: Alert, address: str, trouble: str, *, now: float) -> None:
    """One line for an arrival; for a failure one in all, however often it is tried again."""
    about = {"who": "interlock", "now": now, "release_id": alert.release_id}
    if trouble:
        same = {"id": (alert.id,), "address": (address,)}
        journal.record_once(
            alert.endpoint,
            NOT_SENT,
            since=0.0,
            unless=same,
            **about,
            id=alert.id,
            address=address,
            trouble=trouble,
        )
    else:
        journal.record(alert.endpoint, SENT, **about, id=alert.id, address=address)


_under_way: set[threading.Thread] = set()


def _aside(what: Callable[[], object]) -> None:
    """Run it on a thread that the process waits for at its end, a bounded time."""

    def run() -> None:
        try:
            what()
        finally:
            _under_way.discard(thread)

    thread = threading.Thread(target=run, name="alert", daemon=True)
    _under_way.add(thread)
    thread.start()


@atexit.register
def _wait_for_the_last() -> None:
    """Give what is being sent a last chance before the process ends."""
    until = time.monotonic() + _LEAVE_AFTER_S
    for thread in list(_under_way):
        thread.join(max(0.0, until - time.monotonic()))
