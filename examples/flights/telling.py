"""How the demo tells its story: a live view on a terminal, dated lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.flights.accounts import SERVES, Account

_LINE_EVERY_S = 5.0
_MARK = {"PROMOTED": "[green]promoted[/]", "REJECTED": "[red]rejected[/]", SERVES: "[green]serves[/]"}

STORY = {
    "baseline": "the timetable alone: an honest first champion",
    "congested": "knows the weather and how the origin did today: better",
    "timetable": "a little better still, but it only knows the spring timetable",
    "neighbours": "compares with similar flights, in memory for one request at a time",
    "hasty": "fitted on one fortnight of January",
}


class Teller:
    """Prints what happens. `begin` a release, `show` its status again and again, `end` it."""

    def __init__(self, console: Console | None = None, *, story: Mapping[str, str] = STORY) -> None:
        self._story = story
        # Bound to the real standard output, so that what libraries print can be led elsewhere.
        self.console = console or Console(file=sys.stdout, highlight=False)
        self._begun = time.monotonic()
        self._live: Live | None = None
        self._title = ""
        self._said = ""
        self._said_at = 0.0

    def say(self, text: str) -> None:
        """One line with the time since the demo began; rich markup is allowed."""
        self.console.print(f"[dim]{self._clock()}[/]  {text}", soft_wrap=True)

    def chapter(self, text: str) -> None:
        """The beginning of something new."""
        self.console.print()
        self.console.print(f"[bold]{text}[/]", soft_wrap=True)

    def begin(self, version: str, role: str) -> None:
        """A release begins."""
        self._title, self._said, self._said_at = f"v{version} {role}", "", 0.0
        self.chapter(f"v{version} ({role}): {self._story[role]}")
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()

    def show(self, status: Mapping[str, Any], traffic: Mapping[str, Any]) -> None:
        """Where the release stands now."""
        if self._live is not None:
            self._live.update(Group(*self._view(status, traffic)))
            return
        place = f"{status.get('state')} {status.get('stage')} {share_of(status)}"
        now = time.monotonic()
        if place != self._said or now - self._said_at >= _LINE_EVERY_S:
            self._said, self._said_at = place, now
            line = f"{self._title}: {stage_words(status)}"
            self.say(
                _plain(
                    "; ".join(part for part in (line, evidence_words(status), traffic_words(traffic)) if part)
                )
            )

    def end(self, account_line: str = "") -> None:
        """The release is over (or the demo is)."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if account_line:
            self.say(account_line)

    def _view(self, status: Mapping[str, Any], traffic: Mapping[str, Any]) -> list[Any]:
        progress = status.get("progress") or {}
        done, total = progress_of(progress)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            Text(f"{self._clock()}  {self._title}", style="bold"),
            Text(stage_words(status)),
            ProgressBar(total=total, completed=done, width=30),
        )
        return [
            bar,
            Text(f"       {evidence_words(status)}"),
            Text(f"       {traffic_words(traffic)}", style="dim"),
        ]

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self._begun)
        return f"{seconds // 60}:{seconds % 60:02d}"


def share_of(status: Mapping[str, Any]) -> float:
    """The candidate's share in percent."""
    return float((status.get("progress") or {}).get("share_percent") or 0.0)


def progress_of(progress: Mapping[str, Any]) -> tuple[float, float]:
    """Done and total of the stage, for a bar."""
    if progress.get("steps"):
        return float(progress["step"]), float(progress["steps"])
    if progress.get("min_pairs"):
        return min(float(progress.get("pairs") or 0), float(progress["min_pairs"])), float(
            progress["min_pairs"]
        )
    return 0.0, 1.0


def stage_words(status: Mapping[str, Any]) -> str:
    """Stage, and in the canary its share and step."""
    progress, stage = status.get("progress") or {}, str(status.get("stage") or "waiting")
    if stage == "canary" and progress.get("steps"):
        soak = " (soak)" if progress["step"] == progress["steps"] else ""
        return f"canary at {share_of(status):g}%, step {progress['step']} of {progress['steps']}{soak}"
    if stage == "shadow" and progress.get("min_pairs"):
        return f"shadow, {progress.get('pairs') or 0:g} of {progress['min_pairs']} pairs"
    return stage


def evidence_words(status: Mapping[str, Any]) -> str:
    """The newest numbers: requests and units seen, evidence both ways, what is awaited, ETA."""
    progress = status.get("progress") or {}
    parts: list[str] = []
    if "requests/candidate" in progress:
        parts.append(
            f"candidate answered {progress['requests/candidate']:g} ({progress['units/candidate']:g} users)"
        )
    for name, words in (("rollback", "evidence of harm"), ("promote", "of no harm")):
        value = progress.get(f"evidence_log10/{name}")
        if value is not None:
            parts.append(f"{words} E = {_power(float(value))}")
    for key in ("doing", "advance", "reason"):
        if progress.get(key):
            parts.append(str(progress[key]))
            break
    eta = progress.get("eta_units")
    if eta:
        parts.append(f"about {eta:.0f} {'pairs' if status.get('stage') == 'shadow' else 'users'} to go")
    return "; ".join(parts)


def traffic_words(traffic: Mapping[str, Any]) -> str:
    """What the clients notice."""
    if not traffic:
        return ""
    p50, p99 = traffic.get("p50_ms"), traffic.get("p99_ms")
    latency = f", p50 {p50:.0f} ms, p99 {p99:.0f} ms" if p50 is not None and p99 is not None else ""
    return (
        f"clients: {traffic['sent']} sent, {traffic['failed']} failed, {traffic['per_second']:.0f}/s{latency}"
    )


def outcome_line(account: Account) -> str:
    """One line at a release's end."""
    mark = _MARK.get(account.outcome, f"[yellow]{account.outcome.lower()}[/]")
    where = f" at {account.stage}" if account.stage else ""
    return f"v{account.version} {mark}{where} after {account.seconds:.0f} s: {_plain(account.reason)}"


def final_table(accounts: Sequence[Account]) -> Table:
    """Everything but the reasons, one row a version; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("version", "outcome", "decided in"):
        table.add_column(heading, no_wrap=True)
    for heading in ("requests\nanswered", "its\nerrors", "last\nafter", "our\nerrors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for account in accounts:
        last = "" if account.last_request_ms is None else f"{account.last_request_ms:.0f} ms"
        table.add_row(
            account.title,
            _MARK.get(account.outcome, f"[yellow]{account.outcome.lower()}[/]"),
            account.stage,
            f"{account.answered:,}",
            f"{account.own_failures:,}",
            last,
            f"{account.machinery_failures:,}",
        )
    return table


LEGEND = (
    "requests answered: live ones, its errors among them. last after: from the\n"
    "decision to the last request that the version was given. our errors: client\n"
    "requests that failed meanwhile for any reason but the candidate's own errors."
)


def final_lines(accounts: Sequence[Account]) -> list[str]:
    """The reason in numbers and the links of every version, and what was not expected."""
    lines: list[str] = []
    for account in accounts:
        lines.append(f"{account.title}: {account.reason}")
        if account.surprise:
            lines.append(f"    NOT AS EXPECTED: {account.surprise}")
        if account.flow_run_url:
            lines.append(f"    Prefect {account.flow_run_url}")
            lines.append(f"    MLflow  {account.mlflow_url}")
    return lines


def _power(log10: float) -> str:
    """An e-value as people write it."""
    return f"{10**log10:.2g}" if abs(log10) < 4 else f"10^{log10:.0f}"


def _plain(text: str) -> str:
    """Text of others, with what rich would take for markup made harmless."""
    return text.replace("[", "\\[")
