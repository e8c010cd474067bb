"""The receiver of MLflow's registry webhooks, as a plain ASGI application.

POST /registry turns an authentic `candidate` alias into a Prefect event. Answers that MLflow
understands: 2xx is done, 5xx is tried again for about a minute, 4xx never. GET /health says that
the process lives and counts what it did. Whatever is sent, the answer is never a 500.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from serving.hook.events import PrefectUnavailable, emit
from serving.hook.requests import CandidateRequest, WatchedModels, candidate_requests, parse
from serving.hook.signature import Delivery, HookRefused, SeenDeliveries, verify

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_BYTES_MAX = 65_536
_BODY_WAIT_S = 10.0
_RETRY_AFTER_S = 2

_log = logging.getLogger("interlock.hook")


@dataclass(slots=True)
class Receiver:
    """The application. `client` carries the credentials for Prefect; `clock` gives epoch seconds."""

    secret: bytes
    prefect_url: str
    watched: WatchedModels
    client: httpx.AsyncClient
    clock: Callable[[], float] = time.time
    seen: SeenDeliveries = field(default_factory=SeenDeliveries)
    counts: Counter[str] = field(default_factory=Counter[str])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other protocols than HTTP are closed."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, content = await self._answer(scope, receive)
        except HookRefused as refusal:
            self.counts["refused"] += 1
            _log.warning("refused with %d: %s", refusal.status, refusal)
            status, content = refusal.status, {"error": str(refusal)}
        except PrefectUnavailable as error:
            self.counts["prefect_unavailable"] += 1
            _log.error("%s; MLflow will deliver it again", error)
            status, content = 503, {"error": "Prefect does not take events now; deliver it again"}
        except Exception:  # noqa: BLE001  a fault of ours: MLflow tries again, and the process lives
            self.counts["faults"] += 1
            _log.exception("a fault of the receiver")
            status, content = 503, {"error": "the receiver failed; deliver it again"}
        await _reply(send, status, content)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, dict[str, Any]]:
        path, method = scope["path"], scope["method"]
        if path == "/health":
            if method not in {"GET", "HEAD"}:
                raise HookRefused(405, "GET only")
            return 200, {"status": "ok", **self.counts}
        if path != "/registry":
            raise HookRefused(404, "there is only POST /registry and GET /health")
        if method != "POST":
            raise HookRefused(405, "POST only")
        delivery = _delivery(scope["headers"])
        body = await _read_body(scope["headers"], receive)
        return await self._handle(delivery, body)

    async def _handle(self, delivery: Delivery, body: bytes) -> tuple[int, dict[str, Any]]:
        now = self.clock()
        verify(delivery, body, secret=self.secret, now=now)
        if delivery.id in self.seen:
            self.counts["duplicates"] += 1
            return 200, {"status": "duplicate", "started": []}
        requests = self._requests(delivery, body)
        if requests:
            await emit(self.client, self.prefect_url, requests, now=now)
        # only now: a delivery that Prefect did not take must be welcome when it comes again
        self.seen.add(delivery.id, now=now)
        self.counts["requested" if requests else "ignored"] += 1
        for request in requests:
            version = f"prompt v{request.prompt}" if request.prompt else f"v{request.version}"
            _log.info("%s %s is a candidate for %s", request.model, version, request.endpoint)
        endpoints = [request.endpoint for request in requests]
        return 200, {"status": "requested" if requests else "ignored", "started": endpoints}

    def _requests(self, delivery: Delivery, body: bytes) -> tuple[CandidateRequest, ...]:
        change = parse(body)
        if change is None:
            return ()
        return candidate_requests(change, delivery.id, self.watched.endpoints_of())

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.client.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _delivery(headers: Iterable[tuple[bytes, bytes]]) -> Delivery:
    """The three headers; a repeated one is refused, for nobody can say which of them was signed."""
    found: dict[bytes, str] = {}
    for name, value in headers:
        if name.startswith(b"x-mlflow-"):
            if name in found:
                raise HookRefused(400, "a header is given twice")
            found[name] = value.decode("latin-1")
    names = (b"x-mlflow-delivery-id", b"x-mlflow-timestamp", b"x-mlflow-signature")
    if any(name not in found for name in names):
        raise HookRefused(401, "the signature headers are missing")
    return Delivery(*(found[name] for name in names))


async def _read_body(headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
    """The whole body, bounded in bytes and in time."""
    declared = dict(headers).get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > BODY_BYTES_MAX:
        raise HookRefused(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_WAIT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise HookRefused(400, "the client went away")
                body += message.get("body", b"")
                if len(body) > BODY_BYTES_MAX:
                    raise HookRefused(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise HookRefused(408, f"the body did not arrive within {_BODY_WAIT_S:.0f} s") from error


async def _reply(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", str(_RETRY_AFTER_S).encode()))
    if status in {408, 413}:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
