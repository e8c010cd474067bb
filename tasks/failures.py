"""What a failure means to whoever ran the command: an exit status and a message, never a stack trace."""

from __future__ import annotations

from enum import IntEnum

from configs.errors import ConfigError
from serving.errors import Fenced, LeaseExpired, Refused, ServingError, TransientError


class ExitStatus(IntEnum):
    """Exit statuses of every `interlock` command; scripts may rely on them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REJECTED = 3
    UNFINISHED = 4
    REFUSED = 5
    UNAVAILABLE = 6


MEANINGS = {
    ExitStatus.DONE: "done; with --wait: promoted",
    ExitStatus.FAILED: "it failed, or a check found something; the message says what to do next",
    ExitStatus.USAGE: "the command line is wrong",
    ExitStatus.REJECTED: "the release ended with a FAIL verdict: the version was rejected",
    ExitStatus.UNFINISHED: "the release is held, interrupted or was aborted: not rejected, can be run again",
    ExitStatus.REFUSED: "not allowed in the present state (another release runs, nothing to roll back to)",
    ExitStatus.UNAVAILABLE: "a server does not answer; the same command may work later",
}


def explain(error: Exception) -> tuple[ExitStatus, str] | None:
    """Status and message of an error that was foreseen; None for a fault of ours."""
    if isinstance(error, Refused | Fenced | LeaseExpired):
        return ExitStatus.REFUSED, str(error)
    if isinstance(error, TransientError):
        return ExitStatus.UNAVAILABLE, str(error)
    if isinstance(error, ServingError | ConfigError):
        return ExitStatus.FAILED, str(error)
    return None
