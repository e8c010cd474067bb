"""What a request can end with besides an answer.

RequestError            an HTTP status with a message for the client
├── BadInput                400: the client's fault; names the column where there is one
├── UnsupportedType         415
├── BodyTooLarge            413
├── TimedOut                504: no answer within request_timeout_s
├── Unready                 503: loading
└── ModelFault              500: the model's fault; the cause is logged, never sent

No exception of the model is ever one of the first three: input is checked before the model
sees it, and whatever the model raises is a ModelFault.
"""

from __future__ import annotations


class RequestError(Exception):
    """Ends a request with `status`; `code` is the machine's word for it, the text is the client's."""

    status = 500
    code = "internal"


class BadInput(RequestError):
    """The request cannot be what the model's signature asks for."""

    status = 400
    code = "bad_input"

    def __init__(self, message: str, *, column: str | None = None) -> None:
        super().__init__(message)
        self.column = column


class UnsupportedType(RequestError):
    """A content type that is not of the scoring protocol."""

    status = 415
    code = "unsupported_content_type"


class BodyTooLarge(RequestError):
    """More bytes than the policy allows."""

    status = 413
    code = "body_too_large"


class TimedOut(RequestError):
    """No answer within the replica's time limit. The prediction may still be running."""

    status = 504
    code = "timeout"


class Unready(RequestError):
    """The replica is loading its model, or draining before it ends."""

    status = 503
    code = "unready"


class ModelFault(RequestError):
    """The model raised, or returned what JSON cannot express. Its cause is for the log only."""

    status = 500
    code = "model_fault"


class LoadFailed(Exception):
    """The model cannot be served: no registry and no local copy, or it fails its own input example."""


class RegistryUnreachable(LoadFailed):
    """Neither the registry nor a local copy is there. Worth starting again later."""
