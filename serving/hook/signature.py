"""Who sent a webhook, and when: MLflow's signature, its time window, and repeats.

MLflow signs `"{delivery_id}.{timestamp}." + body` with HMAC-SHA256 and sends it as
`v1,<base64>`. Its retries repeat the delivery id, the timestamp and the signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections import OrderedDict
from dataclasses import dataclass

WINDOW_S = 300.0
"""A timestamp further away than this, either way, is refused. MLflow's retries end after one minute."""

_REMEMBERED_MAX = 20_000
_DELIVERY_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


class HookRefused(Exception):
    """A request that will never be accepted, as it stands. `status` is the HTTP answer, a 4xx."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Delivery:
    """The three headers that MLflow sends with a webhook."""

    id: str
    timestamp: str
    signature: str


def verify(delivery: Delivery, body: bytes, *, secret: bytes, now: float) -> None:
    """Raise HookRefused unless the owner of `secret` signed this body within the window around `now`.

    The signature is checked before the time: a stranger learns nothing about our clock.
    """
    if not _DELIVERY_ID.fullmatch(delivery.id) or not _TIMESTAMP.fullmatch(delivery.timestamp):
        raise HookRefused(400, "the delivery id or the timestamp is missing or malformed")
    version, _, encoded = delivery.signature.partition(",")
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        given = b""
    signed = f"{delivery.id}.{delivery.timestamp}.".encode() + body
    expected = hmac.digest(secret, signed, hashlib.sha256)
    if version != "v1" or not hmac.compare_digest(expected, given):
        raise HookRefused(401, "the signature does not fit the body")
    if abs(now - int(delivery.timestamp)) > WINDOW_S:
        raise HookRefused(401, "the timestamp is outside the window: too old, or a clock is wrong")


class SeenDeliveries:
    """Delivery ids that were handled, for as long as their timestamps are inside the window.

    In memory only: after a restart Prefect still refuses the second event of one delivery, because
    the event's id follows from the delivery's. Only authentic deliveries get here, so nobody else
    can fill it.
    """

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, delivery_id: str) -> bool:
        return delivery_id in self._until

    def add(self, delivery_id: str, *, now: float) -> None:
        """Remember one, and forget those that the window refuses anyway."""
        self._until[delivery_id] = now + 2 * WINDOW_S
        while self._until:
            oldest = next(iter(self._until))
            if self._until[oldest] > now and len(self._until) <= _REMEMBERED_MAX:
                break
            del self._until[oldest]
