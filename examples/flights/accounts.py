"""The demo's books: per version what became of it, and what the travellers noticed.

Three sources that know nothing of each other: the journal's releases (what was decided, when and
why), the gateway's access log (the last request that a version was given), and the load
generator's record (what the clients got).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.flights.models import ROLES

EXPECTED: Mapping[str, tuple[str, str]] = {
    "baseline": ("PROMOTED", ""),
    "congested": ("PROMOTED", ""),
    "timetable": ("REJECTED", "shadow"),
    "neighbours": ("REJECTED", "canary"),
    "hasty": ("REJECTED", "evaluate"),
}
"""Role to the state its release must end in, and the stage that must decide ("" for any)."""

SERVES = "SERVES"
"""Outcome of the first role where an earlier run's champion already serves: nothing to release."""

OWN_ERRORS = frozenset({500, 504})
"""Statuses by which a version itself fails: it raised, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Account:
    """One line of the final table. Times in milliseconds and seconds as named.

    `last_request_ms` is the time from the decision to the last request that the version was
    given: 0 where the last one came before the decision, None where the version never had one or
    goes on serving. `machinery_failures` are failed client requests, in the time of this release,
    that the candidate's own errors do not explain.
    """

    version: str
    role: str
    outcome: str
    stage: str
    reason: str
    answered: int
    own_failures: int
    last_request_ms: float | None
    machinery_failures: int
    seconds: float
    flow_run_url: str = ""
    mlflow_url: str = ""
    expected: tuple[str, str] | None = None

    @property
    def title(self) -> str:
        """Version and role; an earlier run's champion has its role in this story only."""
        return f"v{self.version} {'champion' if self.outcome == SERVES else self.role}"

    @property
    def surprise(self) -> str:
        """How this differs from the role's part in the story; "" where it does not."""
        state, stage = self.expected or EXPECTED[self.role]
        serves = self.role == ROLES[0] and self.outcome == SERVES
        found: list[str] = []
        if not serves and (self.outcome != state or stage not in ("", self.stage)):
            found.append(f"expected {state.lower()}{f' at {stage}' if stage else ''}")
        if self.machinery_failures:
            found.append(f"{self.machinery_failures} client requests failed that the candidate did not fail")
        return "; ".join(found)

    @property
    def as_expected(self) -> bool:
        """Whether this is how the role must end, without any harm by the machinery."""
        return not self.surprise


@dataclass(frozen=True, slots=True)
class Followed:
    """A release that the demo started: its role, its last summary, and when it was given its last request.

    `expected` is how it must end; without it what `EXPECTED` says of its role.
    """

    role: str
    version: str
    summary: Mapping[str, Any]
    last_given_at: float | None = None
    expected: tuple[str, str] | None = None


def read_requests(path: Path) -> list[dict[str, Any]]:
    """The load generator's record; empty where there was no traffic."""
    if not path.exists():
        return []
    with path.open() as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def settle(followed: Sequence[Followed], requests: Iterable[Mapping[str, Any]]) -> tuple[list[Account], int]:
    """The accounts in order, and failed requests outside of every release.

    A failed request belongs to the release during which it was due. It is explained by the
    candidate only if the candidate answered it, with an error of its own.
    """
    answered: Counter[str] = Counter()
    own: Counter[str] = Counter()
    machinery: Counter[str] = Counter()
    outside = 0
    for request in requests:
        version, status = str(request["version"]), int(request["status"])
        if version and status:
            answered[version] += 1
        if status == 200:
            continue
        release = _during(followed, float(request["time"]))
        if release is not None and version == release.version and status in OWN_ERRORS:
            own[version] += 1
        elif release is not None:
            machinery[release.version] += 1
        else:
            outside += 1
    accounts = [
        _account(one, answered[one.version], own[one.version], machinery[one.version]) for one in followed
    ]
    return accounts, outside


def _during(followed: Sequence[Followed], moment: float) -> Followed | None:
    """The release that was under way; requests due a little before its end may be answered after."""
    for one in followed:
        started, ended = one.summary.get("started_at"), one.summary.get("ended_at")
        if started and started <= moment <= (ended or float("inf")):
            return one
    return None


def _account(one: Followed, answered: int, own: int, machinery: int) -> Account:
    summary = one.summary
    decided, promoted = summary.get("decided_at"), summary["state"] == "PROMOTED"
    last_ms = None
    if one.last_given_at is not None and decided and not promoted:
        last_ms = round(max(0.0, one.last_given_at - decided) * 1000, 1)
    started, ended = summary.get("started_at") or 0.0, summary.get("ended_at") or 0.0
    return Account(
        version=one.version,
        role=one.role,
        outcome=str(summary["state"]),
        stage=str(summary.get("decided_stage") or ""),
        reason=str(summary.get("reason") or ""),
        answered=answered,
        own_failures=own,
        last_request_ms=last_ms,
        machinery_failures=machinery,
        seconds=round(max(0.0, ended - started), 1),
        flow_run_url=str(summary.get("flow_run_url") or ""),
        mlflow_url=str(summary.get("mlflow_url") or ""),
        expected=one.expected,
    )


def report(accounts: Sequence[Account], outside: int, **facts: Any) -> dict[str, Any]:
    """What `demo.json` holds: plain values."""
    return {
        "as_expected": bool(accounts) and outside == 0 and all(account.as_expected for account in accounts),
        "failures_outside_releases": outside,
        "machinery_failures": outside + sum(account.machinery_failures for account in accounts),
        "versions": [asdict(account) | {"as_expected": account.as_expected} for account in accounts],
        **facts,
    }
