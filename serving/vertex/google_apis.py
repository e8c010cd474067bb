"""The clients of Google's APIs that one Vertex endpoint needs, and their errors in our words.

Everything speaks REST: gRPC's threads do not survive the forks of a worker, and a company's proxy
lets HTTPS through. `google_api_url` of the settings replaces all hosts at once (an emulator, or a
gateway that routes by path); a loopback address is spoken to without credentials.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from configs.settings import Settings
from configs.vertex import Vertex
from serving.errors import (
    Busy,
    CredentialsRejected,
    NoCapacity,
    NotHealthy,
    PlatformUnavailable,
    QuotaExceeded,
    Refused,
    ServingError,
    SetupError,
    Throttled,
)
from serving.upstream import is_loopback

if TYPE_CHECKING:
    from google.api_core.operation import Operation
    from google.api_core.retry import Retry
    from google.cloud.aiplatform_v1 import EndpointServiceClient, ModelServiceClient
    from google.cloud.bigquery import Client as BigQueryClient
    from google.cloud.storage import Client as StorageClient

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_TRIED_FOR_S = 60.0


class SplitConflict(Busy):
    """Somebody else changed the endpoint between our reading and our writing, or is about to."""


class GoogleApis:
    """Clients made at first use; each costs seconds of imports."""

    def __init__(self, policy: Vertex, settings: Settings) -> None:
        self.project = policy.project
        self.region = policy.region
        self._base = settings.google_api_url.rstrip("/") if settings.google_api_url else None

    @property
    def parent(self) -> str:
        """The location's resource name."""
        return f"projects/{self.project}/locations/{self.region}"

    @cached_property
    def credentials(self) -> Any:
        """Application default credentials; none for a loopback address. Raises SetupError."""
        from google.auth.credentials import AnonymousCredentials

        if self._base is not None and is_loopback(self._base):
            return AnonymousCredentials()
        import google.auth

        with translated("find Google credentials"):
            credentials, _ = google.auth.default(scopes=[_SCOPE])
        return credentials

    @cached_property
    def endpoints(self) -> EndpointServiceClient:
        """Vertex's endpoint service."""
        from google.cloud.aiplatform_v1 import EndpointServiceClient

        return EndpointServiceClient(
            credentials=self.credentials, transport="rest", client_options={"api_endpoint": self._vertex_host}
        )

    @cached_property
    def models(self) -> ModelServiceClient:
        """Vertex's model service."""
        from google.cloud.aiplatform_v1 import ModelServiceClient

        return ModelServiceClient(
            credentials=self.credentials, transport="rest", client_options={"api_endpoint": self._vertex_host}
        )

    @cached_property
    def storage(self) -> StorageClient:
        """Cloud Storage."""
        from google.cloud.storage import Client

        return Client(project=self.project, credentials=self.credentials, client_options=self._options)

    @cached_property
    def bigquery(self) -> BigQueryClient:
        """BigQuery."""
        from google.cloud.bigquery import Client

        return Client(project=self.project, credentials=self.credentials, client_options=self._options)

    @cached_property
    def session(self) -> Any:
        """Plain HTTP with the credentials, for what has no client: monitoring and the dedicated host."""
        import requests
        from google.auth.credentials import AnonymousCredentials
        from google.auth.transport.requests import AuthorizedSession

        if isinstance(self.credentials, AnonymousCredentials):
            return requests.Session()
        return AuthorizedSession(self.credentials)

    def url(self, host: str) -> str:
        """The base URL of a host, or what stands in for it."""
        return self._base or f"https://{host}"

    def get(self, host: str, path: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON answer. Raises what `translated` raises."""
        from google.api_core.exceptions import from_http_response

        with translated(f"read {host}{path}"):
            reply = self.session.get(f"{self.url(host)}{path}", params=parameters, timeout=30)
            if not reply.ok:
                raise from_http_response(reply)
            return reply.json()

    @property
    def _vertex_host(self) -> str:
        return self._base or f"{self.region}-aiplatform.googleapis.com"

    @property
    def _options(self) -> dict[str, str] | None:
        return {"api_endpoint": self._base} if self._base else None


def patient() -> Retry:
    """Tries again what Google says to try again: only for calls that may be repeated."""
    from google.api_core import exceptions
    from google.api_core.retry import Retry
    from requests import exceptions as http

    passing = (
        exceptions.ServiceUnavailable,
        exceptions.TooManyRequests,
        exceptions.GatewayTimeout,
        exceptions.BadGateway,
        http.ConnectionError,
        http.Timeout,
    )

    def worth(error: BaseException) -> bool:
        return isinstance(error, passing) and not _is_capacity(error)

    return Retry(predicate=worth, initial=0.5, maximum=8.0, multiplier=2.0, timeout=_TRIED_FOR_S)


def finished(operation: Operation, what: str, timeout_s: float) -> Any:
    """The result of a long-running operation. Raises what `translated` raises."""
    import concurrent.futures

    from google.api_core.future.polling import DEFAULT_POLLING

    # The default's predicate is what takes "not done yet" for a reason to ask again.
    polling = DEFAULT_POLLING.with_delay(initial=0.3, maximum=10.0, multiplier=1.5).with_timeout(timeout_s)
    with translated(what):
        try:
            return operation.result(timeout=timeout_s, polling=polling)
        except (concurrent.futures.TimeoutError, TimeoutError) as error:
            raise NotHealthy(
                f"Vertex did not {what} within {timeout_s:g} s; its operation goes on: "
                f"{operation.operation.name}. Next: look at the endpoint in the console, then run it again"
            ) from error


@contextlib.contextmanager
def translated(what: str) -> Generator[None]:
    """Google's errors as ours, each with the next step; `what` completes 'asked Vertex to'."""
    from google.api_core import exceptions
    from google.auth import exceptions as auth
    from requests import exceptions as http

    try:
        yield
    except ServingError:
        raise
    except (auth.RefreshError, auth.InvalidOperation, exceptions.Unauthenticated) as error:
        raise CredentialsRejected(
            f"asked Vertex to {what}, but the credentials have expired ({_said(error)}). "
            "Next: renew them (gcloud auth application-default login), then interlock resume"
        ) from error
    except auth.DefaultCredentialsError as error:
        raise SetupError(
            f"asked Vertex to {what}, but there are no credentials ({_said(error)}). "
            "Next: gcloud auth application-default login, or a service account for the worker"
        ) from error
    except exceptions.Forbidden as error:
        raise SetupError(
            f"asked Vertex to {what}, but this account may not ({_said(error)}). "
            "Next: grant the roles in docs/vertex.md"
        ) from error
    except exceptions.TooManyRequests as error:
        if _is_capacity(error):
            kind, missing = (
                (QuotaExceeded, "the project's quota is used up")
                if "quota" in str(error).lower()
                else (NoCapacity, "it has no capacity")
            )
            raise kind(
                f"asked Vertex to {what}, but {missing} ({_said(error)}). Next: another "
                "vertex.machine_type or region, a quota request, or try again later; nothing changed"
            ) from error
        raise Throttled(
            f"Vertex is throttling us: asked to {what} ({_said(error)}). Next: it is tried again"
        ) from error
    except (exceptions.Conflict, exceptions.BadRequest) as error:
        if status_of(error) == "FAILED_PRECONDITION" and "model server" in str(error).lower():
            raise NotHealthy(
                f"asked Vertex to {what}, but the container did not come up ({_said(error)}). "
                "Next: the container's log in Cloud Logging"
            ) from error
        if status_of(error) in ("ABORTED", "FAILED_PRECONDITION"):
            raise SplitConflict(
                f"asked Vertex to {what}, but somebody else changed the endpoint meanwhile, or it is busy "
                f"({_said(error)}). Next: run it again"
            ) from error
        raise Refused(f"asked Vertex to {what}, which it refused: {_said(error)}") from error
    except (
        exceptions.ServerError,
        auth.TransportError,
        http.RequestException,
        exceptions.RetryError,
    ) as error:
        if isinstance(error, exceptions.RetryError) and isinstance(error.cause, exceptions.TooManyRequests):
            raise Throttled(
                f"Vertex is throttling us: asked to {what} for {_TRIED_FOR_S:g} s. Next: it is tried again"
            ) from error
        raise PlatformUnavailable(
            f"asked Vertex to {what}, but it does not answer ({_said(error)}). Next: it is tried again"
        ) from error
    except exceptions.GoogleAPICallError as error:
        raise Refused(f"asked Vertex to {what}, which it refused: {_said(error)}") from error


def status_of(error: Exception) -> str:
    """The canonical status: over REST the class alone does not tell ABORTED from ALREADY_EXISTS."""
    code = getattr(error, "grpc_status_code", None)
    response = getattr(error, "response", None)
    try:
        return str(response.json()["error"]["status"])  # pyright: ignore[reportOptionalMemberAccess]
    except (AttributeError, KeyError, TypeError, ValueError):
        return str(code.name) if code is not None else ""


def _is_capacity(error: BaseException) -> bool:
    """Whether machines are missing, which no retry mends; `per minute` is mere throttling."""
    said = str(error).lower()
    return "per minute" not in said and any(
        word in said for word in ("quota", "capacity", "insufficient", "stockout")
    )


def _said(error: Exception) -> str:
    return f"{error.__class__.__name__}: {str(error)[:300]}"
