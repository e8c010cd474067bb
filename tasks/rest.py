"""MLflow's and Prefect's REST APIs, for the few calls that must not wait for their clients' imports."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import httpx

from configs.settings import Settings
from serving.errors import Refused, TransientError
from serving.upstream import is_loopback, mlflow_headers, prefect_headers


class ServerUnavailable(TransientError):
    """MLflow or Prefect does not answer."""


class Server:
    """A server's REST API: JSON in, JSON out, errors translated."""

    def __init__(self, title: str, url: str, headers: Mapping[str, str]) -> None:
        self.title = title
        self.url = url
        self._client = httpx.Client(headers=dict(headers), timeout=30, trust_env=not is_loopback(url))
        weakref.finalize(self, self._client.close)

    def call(self, method: str, path: str, body: object = None, *, missing_ok: bool = False) -> Any:
        """The decoded answer; None for an empty one, and for 404 with `missing_ok`.

        Raises ServerUnavailable for no answer or a 5xx, Refused for any other refusal.
        """
        try:
            reply = self._client.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise ServerUnavailable(
                f"{self.title} at {self.url} does not answer ({error.__class__.__name__}). "
                f"Next: interlock doctor"
            ) from error
        if reply.status_code == httpx.codes.NOT_FOUND and missing_ok:
            return None
        if reply.is_server_error:
            raise ServerUnavailable(
                f"{self.title} answered {reply.status_code} to {path}: {reply.text[:300]}"
            )
        if reply.status_code in (401, 403):
            raise Refused(
                f"{self.title} at {self.url} refused our credentials ({reply.status_code}). "
                f"Next: set the variables that its own client uses"
            )
        if reply.is_error:
            raise Refused(f"{self.title} answered {reply.status_code} to {method} {path}: {reply.text[:300]}")
        return reply.json() if reply.content else None


def mlflow_api(settings: Settings) -> Server:
    """MLflow's REST API."""
    return Server("MLflow", f"{settings.mlflow_url.rstrip('/')}/api/2.0/mlflow", mlflow_headers())


def prefect_api(settings: Settings) -> Server:
    """Prefect's REST API."""
    return Server("Prefect", settings.prefect_url.rstrip("/"), prefect_headers())
