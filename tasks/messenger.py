"""Carries alerts out of this process, beside whatever raised them.

Each alert has a thread of its own with bounded waits, so that a server that hangs can delay a
process only at its very end, and there by seconds.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from configs.settings import Settings
from serving.errors import ServingError
from tasks.rest import prefect_api

if TYPE_CHECKING:
    from tasks.alerts import Alert

_LOG = logging.getLogger("interlock.messenger")
EVENT = "interlock.alert"
"""The Prefect event of an alert; automations and a user's own deployments can act on it."""
_LEAVE_AFTER_S = 15.0


class Messenger:
    """Sends alerts: a Prefect event each. What does not arrive is logged, never raised."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def send(self, alert: Alert) -> None:
        """Start sending and return at once."""
        _aside(lambda: self._emit(alert))

    def _emit(self, alert: Alert) -> None:
        try:
            prefect_api(self._settings).call("POST", "/events", [event_body(alert)])
        except ServingError as error:
            _LOG.warning("Prefect did not take the event of an alert: %s", error)


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


_under_way: set[threading.Thread] = set()


def _aside(what: Callable[[], None]) -> None:
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
