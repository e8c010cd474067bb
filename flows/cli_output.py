"""How commands print: tables and lines for people, JSON for scripts; never both."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
    sys.stdout.flush()


def print_json_line(value: object) -> None:
    """One JSON document on one line, for streams."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A plain table; values are shown as they are, without markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(_plain(value)) for value in row))
    return made


def show(*renderables: object) -> None:
    """Print tables and lines to standard output."""
    from rich.console import Console

    # in a pipe there is no width to fit into: long values stay on their line
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    for renderable in renderables:
        console.print(renderable, markup=False)


def stack_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The supervised programs."""
    shown = [
        (row["program"], row["state"], row["pid"] or "", duration(row["uptime_s"]), row["detail"])
        for row in rows
    ]
    return table(("program", "state", "pid", "up", "detail"), shown)


def endpoints_table(statuses: Iterable[Mapping[str, Any]]) -> Table:
    """One line an endpoint: who serves, who wants to, how far it is."""
    rows: list[tuple[object, ...]] = []
    for status in statuses:
        if "error" in status:
            rows.append((status["endpoint"], "?", "", "", "", status["error"]))
            continue
        release = status["release"] or {}
        rows.append(
            (
                status["endpoint"],
                f"v{status['champion']}" if status["champion"] else "none yet",
                f"v{release['version']}" if release else "",
                f"{status['share_percent']:g}%" if status["share_percent"] else "",
                f"{release['stage']} {release['state']}" if release else "",
                progress_words(release) or status.get("live_error", ""),
            )
        )
    return table(("endpoint", "champion", "candidate", "share", "release", "evidence so far"), rows)


def progress_words(release: Mapping[str, Any]) -> str:
    """A release's newest numbers in one line: share, units, evidence, what is waited for, ETA."""
    progress = release.get("progress") or {}
    parts: list[str] = []
    if progress.get("share_percent") is not None:
        parts.append(f"{progress['share_percent']:g}%")
    if progress.get("step"):
        parts.append(f"step {progress['step']} of {progress['steps']}")
    for key, words in (("units/candidate", "candidate units"), ("pairs", "pairs"), ("rows", "rows")):
        if progress.get(key) is not None:
            of_least = f" of {progress['min_pairs']}" if key == "pairs" and "min_pairs" in progress else ""
            parts.append(f"{progress[key]:g}{of_least} {words}")
    for key, words in (("evidence_log10/rollback", "of harm"), ("evidence_log10/promote", "of no harm")):
        if progress.get(key) is not None:
            parts.append(f"evidence {words} {evidence(progress[key])}")
    words = next((str(progress[key]) for key in ("doing", "reason", "advance") if progress.get(key)), "")
    parts += [words] if words else []
    if progress.get("eta_units"):
        eta = duration(progress.get("eta_s") or 0)
        parts.append(f"about {progress['eta_units']:.0f} units to go" + (f" ({eta})" if eta else ""))
    return ", ".join(parts) or str(release.get("reason") or "")


def evidence(log10: float) -> str:
    """An e-value for people: how much more likely the data are if the claim is true."""
    return f"{10**log10:.2g}" if -3 < log10 < 4 else f"10^{log10:.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds <= 0:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def moment(seconds_since_epoch: float | None) -> str:
    """A time of day with its date, local."""
    if not seconds_since_epoch:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds_since_epoch))


def _plain(value: object) -> str:
    return "" if value is None else str(value)


def wrapped(text: str, *, indent: int) -> str:
    """Text broken to the terminal's width (100 where there is none), each line indented."""
    space = " " * indent
    width = shutil.get_terminal_size((100, 24)).columns
    return textwrap.fill(text, max(width, 40), initial_indent=space, subsequent_indent=space)


def who() -> str:
    """Whoever types here, for the trail."""
    import getpass
    import socket

    return f"{getpass.getuser()}@{socket.gethostname()}"
