"""boto3's clients for one endpoint, and what their errors mean here.

boto3 is imported when the first client is made; credentials come from its own chain. A few throttles are
absorbed by its retries, longer ones become `Throttled`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any

from serving.errors import (
    Busy,
    CredentialsRejected,
    NotApplied,
    PlatformUnavailable,
    QuotaExceeded,
    Refused,
    ServingError,
    SetupError,
    Throttled,
)

_ATTEMPTS = 5
_MAKING = threading.Lock()
_CONNECT_S = 5
_THROTTLES = frozenset(
    {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"}
)
_UNKNOWN_CALLER = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "UnrecognizedClientException",
        "RequestExpired",
    }
)
_AWAY = frozenset(
    {"InternalFailure", "InternalServerError", "InternalServiceError", "ServiceUnavailable", "InternalError"}
)


class Clients:
    """One client a service, made at first use; threads may share them."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._made: dict[tuple[str, float], Any] = {}
        self._lock = threading.Lock()

    @property
    def sagemaker(self) -> Any:
        """The control plane."""
        return self._client("sagemaker")

    @property
    def cloudwatch(self) -> Any:
        """Metrics and alarms."""
        return self._client("cloudwatch")

    @property
    def scaling(self) -> Any:
        """Application Auto Scaling."""
        return self._client("application-autoscaling")

    @property
    def s3(self) -> Any:
        """Artifacts and captures."""
        return self._client("s3")

    def runtime(self, timeout_s: float) -> Any:
        """The data plane: asked once, and never for longer than `timeout_s`."""
        return self._client("sagemaker-runtime", timeout_s)

    def _client(self, service: str, once_within_s: float = 0.0) -> Any:
        with self._lock:
            found = self._made.get((service, once_within_s))
            if found is None:
                found = self._made[service, once_within_s] = self._make(service, once_within_s)
            return found

    def _make(self, service: str, once_within_s: float) -> Any:
        import boto3
        from botocore.config import Config

        retries: Any = {"mode": "standard", "total_max_attempts": 1 if once_within_s else _ATTEMPTS}
        config = Config(
            region_name=self._region,
            connect_timeout=min(_CONNECT_S, once_within_s) if once_within_s else _CONNECT_S,
            read_timeout=once_within_s or 60,
            retries=retries,
            max_pool_connections=32,
        )
        with _MAKING:  # boto3's default session keeps the services' models, which take long to read
            return boto3.client(service, config=config)


@contextlib.contextmanager
def translated(asked: str) -> Generator[None]:
    """Turn what boto3 raises into our errors; `asked` says what was wanted, with the endpoint's name."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    try:
        yield
    except ClientError as error:
        raise of_client_error(error, asked) from error
    except NoCredentialsError as error:
        raise SetupError(
            f"{asked}: no AWS credentials were found. Next: aws configure, AWS_PROFILE, or a role"
        ) from error
    except ParamValidationError as error:
        raise Refused(f"{asked}: {error}. Next: mend the policy's section `sagemaker:`") from error
    except BotoCoreError as error:
        raise PlatformUnavailable(f"{asked}: {error}. Next: it is tried again; interlock doctor") from error


def of_client_error(error: Any, asked: str) -> ServingError:
    """Our error for an answer of the service."""
    code = str(error.response["Error"].get("Code", ""))
    message = str(error.response["Error"].get("Message", ""))
    said = f"{asked}: SageMaker says {code}: {message}"
    if code in _THROTTLES:
        return Throttled(f"{said}. Next: it is tried again; ask AWS for a higher API rate if this stays")
    if code in _UNKNOWN_CALLER:
        return CredentialsRejected(
            f"{said}. Next: renew the credentials of this machine, then interlock resume"
        )
    if code.startswith("AccessDenied"):
        return SetupError(f"{said}. Next: compare the role's policy with docs/sagemaker.md")
    if code == "ResourceLimitExceeded":
        return QuotaExceeded(f"{said}. Next: ask for a higher service quota, or retire what is not used")
    if code in _AWAY or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
        return PlatformUnavailable(f"{said}. Next: it is tried again")
    if "in-progress" in message or "is being updated" in message:
        return Busy(f"{said}. Next: it is tried again once the endpoint is InService")
    if code == "ConcurrentUpdateException":
        return Busy(f"{said}. Next: it is tried again")
    if code == "ObjectNotFoundException":
        return NotApplied(f"{said}. Next: interlock status")
    return Refused(f"{said}. Next: mend what it names")


def is_missing(error: Any) -> bool:
    """Whether an answer says that the thing asked for does not exist."""
    code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    return (
        code in ("404", "NoSuchKey", "ObjectNotFoundException", "ResourceNotFound")
        or "Could not find" in message
    )


def exists_already(error: Any) -> bool:
    """Whether an answer says that the thing to be made is there."""
    return "already existing" in error.response["Error"].get("Message", "")
