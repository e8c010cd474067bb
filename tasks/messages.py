"""What a person is told: an alert as a value, as a line of the trail, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from serving.records import AuditRow

ALERT, SENT, NOT_SENT = "alert", "alert sent", "alert not sent"
"""What the trail's lines about an alert are called: that it is, and what became of it by address."""
Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Alert:
    """What a person is told. `link` leads to the page that shows most of it, `time` is since the epoch."""

    id: str
    time: float
    endpoint: str
    release_id: str
    severity: Severity
    what: str
    numbers: Mapping[str, Any]
    next_step: str
    key: str
    owner: str
    link: str
    addresses: tuple[str, ...]

    def as_details(self) -> dict[str, Any]:
        """For the trail: everything but what its line has columns for."""
        mine = asdict(self)
        for column in ("time", "endpoint", "release_id"):
            del mine[column]
        return {"message": mine.pop("what"), **mine}

    @classmethod
    def of(cls, line: AuditRow) -> Alert:
        """The alert that a line of the trail tells of."""
        details = dict(line.details)
        return cls(
            time=line.time,
            endpoint=line.endpoint,
            release_id=line.release_id,
            what=details.pop("message"),
            addresses=tuple(details.pop("addresses", ())),
            **details,
        )

    @property
    def numbers_text(self) -> str:
        """The numbers in one line."""
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.numbers.items())

    @property
    def title(self) -> str:
        """The line that a phone shows."""
        return f"[{self.severity.upper()}] {self.endpoint}: {self.what.splitlines()[0][:150]}"

    @property
    def body(self) -> str:
        """What happened, the numbers, the next step, where to look, whose it is."""
        lines = [self.what, self.numbers_text, f"Next: {self.next_step}", self.link, f"Owner: {self.owner}"]
        return "\n".join(line for line in lines if line)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
