"""Tells Prefect that an endpoint has a candidate: one event, once, whatever is delivered how often."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import httpx

from serving.errors import TransientError
from serving.hook.requests import CandidateRequest

EVENT = "interlock.candidate.requested"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "interlock.candidate.requested")


class PrefectUnavailable(TransientError):
    """Prefect did not take the event. Nothing was started; the same delivery may come again."""


def event_id(request: CandidateRequest) -> str:
    """Follows from delivery and endpoint, so that Prefect drops a repeated event itself."""
    return str(uuid.uuid5(_NAMESPACE, f"{request.delivery_id}/{request.endpoint}"))


def event_body(request: CandidateRequest, *, now: float) -> dict[str, Any]:
    """The event in the form that Prefect's API takes."""
    return {
        "id": event_id(request),
        "occurred": datetime.fromtimestamp(now, tz=UTC).isoformat(),
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"interlock.endpoint.{request.endpoint}",
            "prefect.resource.name": request.endpoint,
        },
        "related": [],
        "payload": asdict(request),
    }


async def emit(
    client: httpx.AsyncClient, prefect_url: str, requests: Sequence[CandidateRequest], *, now: float
) -> None:
    """Post all events in one request, so that they arrive together or not at all.

    Raises PrefectUnavailable on anything but success, a refusal of our credentials included:
    mending those makes the next try work, and MLflow tries again for a while.
    """
    bodies = [event_body(request, now=now) for request in requests]
    try:
        response = await client.post(f"{prefect_url}/events", json=bodies)
    except httpx.HTTPError as error:
        raise PrefectUnavailable(f"{prefect_url}/events does not answer: {error!r}") from error
    if response.status_code >= 300:
        raise PrefectUnavailable(
            f"{prefect_url}/events answered {response.status_code}: {response.text[:200]}"
        )
