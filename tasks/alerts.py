"""The one way to tell a person that something happened.

An alert is first a line of the journal's trail, then a line of the log, then a Prefect event and
a message to the addresses of its severity. None of that may slow or stop what calls it: only the
trail is written at once, and even a journal that is away costs the caller a warning and nothing
more. What the trail has and nobody got (a server was away, this process died) the sweep sends.

The same news told every few seconds is no news: an alert whose key the endpoint has already
used within the policy's `notify.repeat_after_s` is dropped, unless it has become more severe.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.bench import Bench
from tasks.messages import ALERT, Alert, Severity

_LOG = logging.getLogger("interlock.alerts")
_SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
_LEVELS = {"critical": logging.CRITICAL, "warning": logging.WARNING, "info": logging.INFO}


def alert(
    bench: Bench,
    severity: Severity,
    what: str,
    *,
    numbers: Mapping[str, Any],
    next_step: str,
    key: str,
    once: bool = False,
    also: Sequence[str] = (),
) -> None:
    """Tell the endpoint's owner what happened, with its numbers and the next step.

    `key` names the kind of news: the same key is told once in `notify.repeat_after_s`, or with `once`
    never again. `also` are addresses beside the severity's own. Never raises for a server that is
    away; never waits for one.
    """
    release_id, flow_run = _release_of(bench)
    made = Alert(
        id=str(uuid.uuid4()),
        time=bench.clock(),
        endpoint=bench.name,
        release_id=release_id,
        severity=severity,
        what=what,
        numbers={name: _plain(value) for name, value in numbers.items()},
        next_step=next_step,
        key=key,
        owner=bench.policy.owner,
        link=_page(bench, flow_run),
        addresses=tuple(dict.fromkeys((*bench.policy.notify.route(severity), *also))),
    )
    if not _is_news(bench, made, since=0.0 if once else made.time - bench.policy.notify.repeat_after_s):
        _LOG.debug("told already: %s: %s", made.endpoint, made.what)
        return
    _LOG.log(
        _LEVELS[severity],
        "%s: %s%s. Next: %s",
        made.endpoint,
        made.what,
        f" ({made.numbers_text})" if made.numbers else "",
        made.next_step,
    )
    bench.messenger.send(made, bench.policy.notify.timeout_s)


def _is_news(bench: Bench, made: Alert, *, since: float) -> bool:
    """Write it into the trail unless the same, as severe, stands there since then."""
    as_severe = _SEVERITIES[_SEVERITIES.index(made.severity) :]
    try:
        return bench.journal.record_once(
            made.endpoint,
            ALERT,
            since=since,
            unless={"key": (made.key,), "severity": as_severe},
            who="interlock",
            now=made.time,
            release_id=made.release_id,
            **made.as_details(),
        )
    except Exception as error:  # noqa: BLE001 (telling of a trouble must not add another one)
        _LOG.warning("an alert could not be written into the trail: %s", error)
        return True


def _release_of(bench: Bench) -> tuple[str, str]:
    """The release under way, or the newest: its id and its flow run."""
    try:
        releases = bench.journal.releases(bench.name)
    except Exception:  # noqa: BLE001 (an alert without its link is better than none)
        return "", ""
    newest = next((row for row in releases if not row.state.final), releases[0] if releases else None)
    return (newest.id, newest.flow_run_id) if newest else ("", "")


def _page(bench: Bench, flow_run: str) -> str:
    """The flow run that this code runs in, else the release's; Prefect's start page without either."""
    home = bench.settings.prefect_url.removesuffix("/api")
    mine = os.environ.get("PREFECT__FLOW_RUN_ID", "") or flow_run
    return f"{home}/runs/flow-run/{mine}" if mine else home


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    return value.item() if hasattr(value, "item") else value
