"""Webhooks as MLflow sends them, and a Prefect that remembers what it got."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from pathlib import Path
from typing import Any

import httpx

from serving.hook.app import Receiver
from serving.hook.requests import WatchedModels
from tests.configs.policies import VALID

SECRET = b"a secret of the tests"
NOW = 1_795_000_000.0


def alias_event(model: str = "delays", alias: str = "candidate", version: object = "3") -> bytes:
    """The body of a webhook for an alias that was set."""
    data = {"name": model, "alias": alias, "version": version}
    message = {"entity": "model_version_alias", "action": "created", "timestamp": "2026-11-22T09:00:00+00:00"}
    return json.dumps(message | {"data": data}).encode()


def signature(body: bytes, delivery_id: str, timestamp: str, secret: bytes = SECRET) -> str:
    """MLflow's signature, written from its description, apart from the receiver's code."""
    content = delivery_id.encode() + b"." + timestamp.encode() + b"." + body
    return "v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()


def headers(
    body: bytes, *, delivery_id: str | None = None, at: float = NOW, secret: bytes = SECRET
) -> dict[str, str]:
    """The headers of one delivery."""
    delivery_id = delivery_id or str(uuid.uuid4())
    timestamp = str(int(at))
    return {
        "content-type": "application/json",
        "x-mlflow-delivery-id": delivery_id,
        "x-mlflow-timestamp": timestamp,
        "x-mlflow-signature": signature(body, delivery_id, timestamp, secret),
    }


class RememberingPrefect:
    """Prefect's events API: keeps events by id, and can be made to fail."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.posts = 0
        self.answer: int | Exception = 204

    def transport(self) -> httpx.MockTransport:
        """For an httpx client."""
        return httpx.MockTransport(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.posts += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer < 300:
            assert request.url.path == "/api/events"
            self.events |= {event["id"]: event for event in json.loads(request.content)}
        return httpx.Response(self.answer, text="said Prefect")


class Bench:
    """A receiver with its Prefect, its clock and its policies."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prefect = RememberingPrefect()
        self.now = NOW
        self.reports: list[str] = []
        (folder / "flights.yaml").write_text(VALID)
        self.receiver = Receiver(
            secret=SECRET,
            prefect_url="http://prefect/api",
            watched=WatchedModels(folder, self.reports.append),
            client=httpx.AsyncClient(transport=self.prefect.transport()),
            clock=lambda: self.now,
        )

    async def post(self, body: bytes, given: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        """Deliver to the application itself, without a network."""
        chosen = headers(body, **options) if given is None else given
        transport = httpx.ASGITransport(self.receiver, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://hook") as client:
            return await client.post("/registry", content=body, headers=chosen)
