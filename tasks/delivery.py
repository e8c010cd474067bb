"""Brings one alert to one address: Apprise speaks to Slack, PagerDuty, Opsgenie, mail and webhooks.

An address is a reference from the policy (`env:VARIABLE`, `file:PATH`); its URLs are read at the
moment of sending and appear in no log, trail or error.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from configs.settings import Settings
from serving.errors import SetupError
from serving.secret_files import read_private
from tasks.messages import Alert

_TYPES = {"critical": "failure", "warning": "warning", "info": "info"}
_LOADING = threading.Lock()


def deliver(
    settings: Settings, alert: Alert, addresses: Iterable[str], timeout_s: float
) -> Mapping[str, str]:
    """Send to every address at once. Why each did not get it, "" for those that did.

    Returns after `timeout_s` whatever hangs; what still is under way then may arrive all the same.
    """
    _load_apprise()
    outcomes: dict[str, str] = {}
    threads: list[threading.Thread] = []
    for address in addresses:
        outcomes[address] = f"no answer within {timeout_s:g} s"
        threads.append(
            threading.Thread(
                target=_one, args=(settings, alert, address, outcomes), daemon=True, name=address
            )
        )
    for thread in threads:
        thread.start()
    until = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return dict(outcomes)


def urls_of(settings: Settings, address: str) -> list[str]:
    """The URLs that an address stands for, one a line. Raises SetupError for none."""
    kind, _, where = address.partition(":")
    if kind == "env":
        text = os.environ.get(where, "")
        mend = f"set {where} in the environment of `interlock up`"
    else:
        path = settings.secrets_dir / Path(where).expanduser()
        text = read_private(path) if path.exists() else ""
        mend = f"write the URLs into {path}, mode 0600"
    urls = [line.strip() for line in text.splitlines() if line.strip()]
    if not urls:
        raise SetupError(f"{address} names no URL. Next: {mend}")
    return urls


def _one(settings: Settings, alert: Alert, address: str, outcomes: dict[str, str]) -> None:
    try:
        outcomes[address] = _send(alert, urls_of(settings, address))
    except SetupError as error:
        outcomes[address] = str(error)
    except Exception as error:  # noqa: BLE001 (the text of an unknown error may contain the address)
        outcomes[address] = f"{error.__class__.__name__} while sending"


def _load_apprise() -> None:
    """Its plugins take a second to load: not at the cost of an address's time, nor on two threads at once."""
    with _LOADING:
        logging.getLogger("apprise").propagate = False  # its lines can name an address
        import apprise

        apprise.Apprise.instantiate("json://localhost")


def _send(alert: Alert, urls: list[str]) -> str:
    failed = [said for url in urls if (said := _send_one(alert, url))]
    return "; ".join(failed)


def _send_one(alert: Alert, url: str) -> str:
    import apprise

    carrier = apprise.Apprise()
    if not carrier.add(url):
        return "a URL in it is none that Apprise knows"
    said, logger = _Said(), logging.getLogger("apprise")
    logger.addHandler(said)
    try:
        arrived = carrier.notify(title=alert.title, body=alert.body, notify_type=_TYPES[alert.severity])
    finally:
        logger.removeHandler(said)
    return "" if arrived else _without(url, said.last) or "refused"


class _Said(logging.Handler):
    """Keeps the last warning of Apprise on this thread; another one's may name another address."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Remember it."""
        if record.thread == self._thread:
            self.last = record.getMessage()


def _without(url: str, text: str) -> str:
    """A line of Apprise without anything that the URL is made of."""
    text = text[:200]
    for part in sorted(re.split(r"[^\w.-]+", url), key=len, reverse=True):
        if len(part) > 4:  # a schema such as "json" is no secret
            text = text.replace(part, "***")
    return text
