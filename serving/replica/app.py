"""The replica's ASGI app: `/invocations`, `/health` (and `/ping`), `/version`, `/metrics`.

Raw ASGI: a framework would cost more per request than the checks do. The event loop parses small
bodies itself and hands predictions to the pool; nothing on it waits for the model.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

import orjson

from serving.replica.answers import encode, has_nonfinite, jsonable
from serving.replica.errors import BadInput, BodyTooLarge, ModelFault, RequestError, TimedOut, Unready
from serving.replica.metrics import ReplicaMetrics

if TYPE_CHECKING:
    from serving.replica.model import Question, ServedModel
    from serving.replica.pool import PredictionPool
    from serving.replica.spec import ReplicaSpec

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

logger = logging.getLogger("interlock.replica")

_INLINE_BODY_BYTES_MAX = 32_768
"""Larger bodies are parsed in a thread: a megabyte would hold the loop for milliseconds."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON, _PROMETHEUS = b"application/json", b"text/plain; version=0.0.4; charset=utf-8"


class Stage(StrEnum):
    """Where the replica is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class _ClientGone(Exception):
    """The client went away before its body was complete."""


class ReplicaApp:
    """Serves one model. `become_ready` and `drain` are called by whoever runs the process."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self.spec = spec
        self.stage = Stage.LOADING
        self.in_flight = 0
        self.metrics = ReplicaMetrics(endpoint=spec.endpoint, slot=spec.slot, version=spec.version)
        self._model: ServedModel | None = None
        self._pool: PredictionPool | None = None
        self._parsers = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self._version = spec.version.encode()
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive, Send], Awaitable[None]]]] = {
            "/invocations": ("POST", self._invocations),
            "/health": ("GET", self._health),
            "/ping": ("GET", self._health),
            "/version": ("GET", self._describe),
            "/metrics": ("GET", self._metrics),
        }
        self._routes |= {alias: self._routes[path] for alias, path in spec.aliases.items()}

    def become_ready(self, model: ServedModel) -> None:
        """Start to answer. Call on the event loop, once the model is loaded and warm."""
        from serving.replica.pool import PredictionPool

        self._model = model
        self._pool = PredictionPool(
            model, concurrency=self.spec.concurrency, batch_max_rows=self.spec.batch_max_rows
        )
        self.metrics.watch_pool(self._pool)
        if self.stage is Stage.LOADING:
            self.stage = Stage.READY
            self.metrics.ready.set(1)

    def drain(self) -> None:
        """Turn unhealthy, so that no new requests are sent here; those that come are still answered."""
        self.stage = Stage.DRAINING
        self.metrics.ready.set(0)

    def close(self) -> None:
        """Let the threads end."""
        if self._pool is not None:
            self._pool.close()
        self._parsers.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        method, handle = self._routes.get(scope["path"], (None, None))
        if handle is None:
            await self._reply(send, 404, _error("not_found", "There is nothing here."))
        elif scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
            body = _error("method_not_allowed", f"Use {method}.")
            await self._reply(send, 405, body, extra=((b"allow", cast("str", method).encode()),))
        else:
            await handle(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _invocations(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex.encode()
        self.in_flight += 1
        try:
            status, body = 200, await self._answer(headers, receive)
        except RequestError as error:
            status, body = error.status, _error_body(error, request_id.decode())
            if isinstance(error, ModelFault):
                logger.error("request %s: %s", request_id.decode(), error, exc_info=error.__cause__)
        except _ClientGone:
            return
        finally:
            self.in_flight -= 1
        extra: tuple[tuple[bytes, bytes], ...] = ((b"x-request-id", request_id),)
        if status in (503, 504):
            extra += ((b"retry-after", b"1"),)
        await self._reply(send, status, body, extra=extra)
        self.metrics.answered(status, time.perf_counter() - started)

    async def _answer(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The answer's body, or `RequestError`."""
        model, pool = self._model, self._pool
        if model is None or pool is None:
            raise Unready("The model is still loading.")
        body = await self._read(headers, receive)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        question = await self._parse(model, body, content_type)
        future = pool.submit(question, lambda raw: _finish(raw, question))
        try:
            async with asyncio.timeout(self.spec.request_timeout_s):
                answer, nonfinite = await future
        except TimeoutError:
            raise TimedOut(f"No answer within {self.spec.request_timeout_s:g} s.") from None
        if nonfinite:
            self.metrics.nonfinite()
        return answer

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self.spec.max_body_bytes
        declared = headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            raise BodyTooLarge(f"The body has {int(declared)} bytes; {limit} are allowed.")
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge(f"The body has more than {limit} bytes.")
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _parse(self, model: ServedModel, body: bytes, content_type: str) -> Question:
        try:
            if len(body) <= _INLINE_BODY_BYTES_MAX:
                return model.parse(body, content_type)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._parsers, model.parse, body, content_type)
        except RequestError:
            raise
        except Exception as error:  # the model was not asked: the input is at fault, or we are
            logger.exception("A body could not be read, for a reason that nobody foresaw")
            raise BadInput("The body cannot be read.") from error

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        stage = "stuck" if self.stage is Stage.READY and self._is_stuck() else str(self.stage)
        body = orjson.dumps({"status": stage, "version": self.spec.version, "slot": self.spec.slot})
        await self._reply(send, 200 if stage == Stage.READY else 503, body)

    def _is_stuck(self) -> bool:
        """Whether every worker has been busy with one call for far longer than a request may take."""
        pool = self._pool
        return pool is not None and pool.stuck_for_s() > 2 * self.spec.request_timeout_s

    async def _describe(self, scope: Scope, receive: Receive, send: Send) -> None:
        spec, model = self.spec, self._model
        body = orjson.dumps(
            {
                "endpoint": spec.endpoint,
                "slot": spec.slot,
                "version": spec.version,
                "uri": spec.uri,
                "model_id": model.model_id if model is not None else None,
                "refuses_missing": model.refuses_missing if model is not None else None,
                "replica": spec.replica_name,
                "stage": self.stage,
            }
        )
        await self._reply(send, 200, body)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.metrics.in_flight.set(self.in_flight)
        await self._reply(send, 200, self.metrics.text(), content_type=_PROMETHEUS)

    async def _reply(
        self,
        send: Send,
        status: int,
        body: bytes,
        *,
        content_type: bytes = _JSON,
        extra: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        headers = [
            (b"content-type", content_type),
            (b"content-length", str(len(body)).encode()),
            (b"x-interlock-version", self._version),
            *extra,
        ]
        if self.stage is Stage.DRAINING:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _finish(raw: Any, question: Question) -> tuple[bytes, bool]:
    """In the worker: the answer's bytes, and whether something in it was not finite."""
    return encode(jsonable(raw), wrapped=question.wrapped), has_nonfinite(raw)


def _error_body(error: RequestError, request_id: str) -> bytes:
    column = error.column if isinstance(error, BadInput) else None
    more = {"column": column} if column is not None else {}
    return _error(error.code, str(error), request_id=request_id, **more)


def _error(code: str, message: str, **more: str) -> bytes:
    return orjson.dumps({"error": code, "message": message, **more})
