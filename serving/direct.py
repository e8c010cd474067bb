"""Asks replicas directly, past the gateway: for the shadow, smoke tests and health.

Standard library only: a shadow sends dozens of requests a second, and httpx costs a millisecond of
CPU for each, which would be measured as the candidate's latency.
"""

from __future__ import annotations

import http.client
import socket
import time
import weakref
from collections import defaultdict, deque
from typing import cast

from serving.endpoint import Reply

_IDLE_MAX = 16
_REPLAY = {"x-interlock-replay": "1"}
"""Tells the capture that this is no live request: it must not be replayed once more."""


_Idle = defaultdict[int, deque[http.client.HTTPConnection]]


class DirectClient:
    """Keep-alive connections to replicas by port, shared by threads."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._idle: _Idle = defaultdict(deque)
        weakref.finalize(self, _close_all, self._idle)  # for callers that only ever drop it

    def post(self, port: int, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        """One POST. `status` 0 when nothing came within the time, or the connection broke."""
        headers = {"content-type": content_type, **_REPLAY}
        return self._request("POST", port, path, body, headers, timeout_s)

    def get(self, port: int, path: str, *, timeout_s: float) -> Reply:
        """One GET."""
        return self._request("GET", port, path, None, {}, timeout_s)

    def close(self) -> None:
        """Close what is idle."""
        _close_all(self._idle)

    def _request(
        self, method: str, port: int, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> Reply:
        started = time.perf_counter()
        idle = self._idle[port]
        while True:
            try:
                connection, is_used = idle.pop(), True
            except IndexError:
                connection, is_used = http.client.HTTPConnection(self._host, port), False
            connection.timeout = timeout_s
            try:
                response = _begun(connection, (method, path, body, headers))
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                # A kept connection that the replica had closed meanwhile says nothing about the replica.
                if is_used and not isinstance(error, TimeoutError):
                    continue
                return Reply(0, b"", (time.perf_counter() - started) * 1000)
            try:
                content = response.read()
            except (http.client.HTTPException, OSError):  # it broke off: asking again would hide that
                connection.close()
                return Reply(0, b"", (time.perf_counter() - started) * 1000)
            elapsed_ms = (time.perf_counter() - started) * 1000
            if response.will_close or len(idle) >= _IDLE_MAX:
                connection.close()
            else:
                idle.append(connection)
            return Reply(response.status, content, elapsed_ms, response.getheader("content-type") or "")


def _begun(
    connection: http.client.HTTPConnection, what: tuple[str, str, bytes | None, dict[str, str]]
) -> http.client.HTTPResponse:
    """The answer once its headers are there, within the connection's time-out."""
    plug = cast("socket.socket | None", connection.sock)
    if plug is None:
        connection.connect()  # sets TCP_NODELAY
    else:
        plug.settimeout(connection.timeout)
    connection.request(*what)
    return connection.getresponse()


def _close_all(connections: _Idle) -> None:
    for idle in connections.values():
        while idle:
            idle.pop().close()
