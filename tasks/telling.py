"""Telling a person: one line in the trail and in the log, under a key that says what it is about."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

from tasks.bench import Bench

_LOG = logging.getLogger("interlock.alerts")
_AGAIN_AFTER_S = 300.0
_LEVELS = {"critical": logging.CRITICAL, "warning": logging.WARNING, "info": logging.INFO}


def tell(
    bench: Bench,
    severity: Literal["critical", "warning", "info"],
    what: str,
    *,
    numbers: Mapping[str, Any],
    next_step: str,
    key: str,
) -> None:
    """Tell the endpoint's owner what happened and what to do next; the same again only after a while."""
    lines = bench.journal.audit(bench.name, what=f"alert {severity}", limit=20)
    if any(line.details["key"] == key and bench.clock() - line.time < _AGAIN_AFTER_S for line in lines):
        return
    _LOG.log(_LEVELS[severity], "%s: %s. Next: %s", bench.name, what, next_step)
    bench.journal.record(
        bench.name,
        f"alert {severity}",
        who="interlock",
        now=bench.clock(),
        about=what,
        next_step=next_step,
        key=key,
        numbers=dict(numbers),
    )
