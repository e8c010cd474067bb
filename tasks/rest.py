"""MLflow's and Prefect's REST APIs, for the few calls that must not wait for their clients' imports."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from configs.settings import Settings
from serving.errors import Refused, TransientError
from serving.upstream import is_loopback, mlflow_headers, prefect_headers

_PAUSES_S = (0.2, 0.5, 1.0)
"""Before the second, third and fourth try. A database that is locked for a moment is free by then; a server
that is down is not, and whoever calls must soon learn it (a rollback has other things to do)."""
_PATIENT_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
"""Where nobody waits for the answer's effect, as at `interlock up`: a server that has only just started on a
busy machine answers 503, or nothing for a while."""
_PAUSE_S_MAX = 2.0
_BUSY = {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE}
_REPEATABLE = {"GET", "PUT", "PATCH", "DELETE"}


class ServerUnavailable(TransientError):
    """MLflow or Prefect does not answer."""


class Server:
    """A server's REST API: JSON in, JSON out, errors translated, a busy moment waited for."""

    def __init__(
        self,
        title: str,
        url: str,
        headers: Mapping[str, str],
        *,
        patient: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`patient` waits out half a minute of busyness, time-outs included, instead of two seconds."""
        self.title = title
        self.url = url
        self._patient = patient
        self._sleep = sleep
        self._client = httpx.Client(headers=dict(headers), timeout=30, trust_env=not is_loopback(url))
        weakref.finalize(self, self._client.close)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        missing_ok: bool = False,
        repeatable: bool = False,
    ) -> Any:
        """The decoded answer; None for an empty one, and for 404 with `missing_ok`.

        What cannot have had an effect is tried again in any case: no connection, 429. A lost connection,
        502 and 503 are tried again where repeating is safe: `repeatable` says it of a POST, of all other
        methods it is known. A time-out is repeated by a patient caller only: else it was long enough.
        Raises ServerUnavailable for no answer or a 5xx, Refused for any other refusal.
        """
        repeatable = repeatable or method in _REPEATABLE
        for pause_s in (*(_PATIENT_PAUSES_S if self._patient else _PAUSES_S), None):
            try:
                reply = self._client.request(method, self.url + path, json=body)
            except httpx.HTTPError as error:
                if pause_s is None or not self._is_worth_repeating(error, repeatable=repeatable):
                    raise ServerUnavailable(
                        f"{self.title} at {self.url} does not answer ({error.__class__.__name__}). "
                        f"Next: interlock doctor"
                    ) from error
            else:
                is_free = reply.status_code == httpx.codes.TOO_MANY_REQUESTS or repeatable
                if pause_s is None or reply.status_code not in _BUSY or not is_free:
                    return self._answer(reply, method, path, missing_ok=missing_ok)
                pause_s = max(pause_s, _asked_pause_s(reply))
            self._sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _is_worth_repeating(self, error: httpx.HTTPError, *, repeatable: bool) -> bool:
        """Whether a request without an answer may be sent again."""
        if isinstance(error, httpx.ConnectError):
            return True
        if isinstance(error, httpx.TimeoutException):
            return repeatable and self._patient
        return repeatable and isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)

    def _answer(self, reply: httpx.Response, method: str, path: str, *, missing_ok: bool) -> Any:
        if reply.status_code == httpx.codes.NOT_FOUND and missing_ok:
            return None
        if reply.is_server_error or reply.status_code in _BUSY:
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


def _asked_pause_s(reply: httpx.Response) -> float:
    """How long the server asks to wait, as far as we are willing."""
    asked = reply.headers.get("retry-after", "")
    return min(float(asked), _PAUSE_S_MAX) if asked.isdecimal() else 0.0


def mlflow_api(settings: Settings) -> Server:
    """MLflow's REST API."""
    return Server("MLflow", f"{settings.mlflow_url.rstrip('/')}/api/2.0/mlflow", mlflow_headers())


def prefect_api(settings: Settings, *, patient: bool = False) -> Server:
    """Prefect's REST API."""
    return Server("Prefect", settings.prefect_url.rstrip("/"), prefect_headers(), patient=patient)
