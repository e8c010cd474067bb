"""How often guards did something, in this process: shown in `/metrics`, read from there by the status."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar

METRIC = "interlock_guard_total"
_LINE = re.compile(rf"^{METRIC}\{{([^}}]*)\}} (\d+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


is_copy: ContextVar[bool] = ContextVar("is_copy", default=False)
"""Whether the request at hand is a copy (a warm-up, the shadow): copies are counted apart."""


class GuardCounts:
    """Counts by stage (request, input, output), check or limit, and what was done; copies apart."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str, str]] = Counter()

    def add(self, stage: str, check: str, done: str) -> None:
        """One more."""
        self._counts["copy" if is_copy.get() else "live", stage, check, done] += 1

    def get(self, stage: str, check: str, done: str, *, traffic: str = "live") -> int:
        """So far."""
        return self._counts[traffic, stage, check, done]

    def text(self, version: str) -> str:
        """In Prometheus' form."""
        lines = [
            f"# HELP {METRIC} What the guards of this replica did.",
            f"# TYPE {METRIC} counter",
            *(
                f'{METRIC}{{version="{version}",traffic="{traffic}",stage="{stage}",check="{check}",'
                f'done="{done}"}} {count}'
                for (traffic, stage, check, done), count in sorted(self._counts.items())
            ),
        ]
        return "\n".join(lines) + "\n"


def parse_counts(text: str) -> dict[str, int]:
    """Live requests' counts by `stage/check/done`, from a replica's `/metrics`; nothing without guards."""
    found: dict[str, int] = {}
    for labels, count in _LINE.findall(text):
        one = dict(_LABEL.findall(labels))
        if one.get("traffic") != "live":
            continue
        name = "/".join(one.get(part, "") for part in ("stage", "check", "done"))
        found[name] = found.get(name, 0) + int(count)
    return found


def add_counts(many: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The sum over replicas."""
    total: Counter[str] = Counter()
    for one in many.values():
        total.update(one)
    return dict(sorted(total.items()))
