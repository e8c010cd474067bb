"""Errors as Google's APIs say them."""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """An error as Google says it."""

    def __init__(self, http: int, status: str, message: str) -> None:
        super().__init__(message)
        self.http, self.status, self.message = http, status, message

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.http, "status": self.status, "message": self.message}}


def not_found(what: str) -> Problem:
    return Problem(404, "NOT_FOUND", f"{what} is not found.")


def invalid(message: str) -> Problem:
    return Problem(400, "INVALID_ARGUMENT", message)


def throttled() -> Problem:
    return Problem(429, "RESOURCE_EXHAUSTED", "Requests per minute exceeded. Try again.")


def no_quota() -> Problem:
    return Problem(429, "RESOURCE_EXHAUSTED", "The following quotas are exceeded: CustomModelServingL4GPUs")


def no_capacity() -> Problem:
    return Problem(429, "RESOURCE_EXHAUSTED", "Insufficient capacity of g2-standard-12 in this region.")


def expired() -> Problem:
    return Problem(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")


CODES = {"RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10, "INTERNAL": 13}
