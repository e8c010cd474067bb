"""What a supervised program is, and the two files that make supervisord run it.

Each program runs through a generated shell script rather than through supervisord's own
`command`, `environment` and `stdout_logfile`: the script can hold any value (supervisord's
parser trips over quotes, percent signs and newlines), keeps secrets out of `ps`, and opens the
log itself, so that output never passes a pipe in Python and survives a supervisord that dies.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_START_RETRIES = 120
"""supervisord waits one second more before each try: 120 tries are two hours."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running.

    `name` is unique in the stack: letters, digits, `.`, `_` and `-`. `environment` is added to what
    supervisord inherited. `log_path` gets standard output, and standard error too unless
    `error_path` is given; it is opened for appending by the process itself. A program that exits
    within `start_s` counts as not started and is retried with growing pauses. It is asked to stop
    with SIGTERM and, with its whole process group, killed after `stop_wait_s`. Programs of a
    higher `priority` are stopped first. Without `stop_group` SIGTERM reaches the leader only, which then
    ends its children in its own order.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    log_path: Path = Path("/dev/null")
    stop_wait_s: float = 10.0
    autorestart: bool = True
    start_s: float = 1.0
    error_path: Path | None = None
    directory: Path | None = None
    priority: int = 500
    stop_group: bool = True

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"program name {self.name!r} may have letters, digits, '.', '_' and '-' only")


def render_script(program: Program, pid_path: Path) -> str:
    """The shell script that becomes the program.

    It first kills what is left of the program's earlier process group: a leader that was killed
    can leave workers behind that still hold its port, and every later start would fail. Where
    the recorded leader's pid exists again, the number was reused and nothing is killed.
    """
    pid_file = shlex.quote(str(pid_path))
    lines = ["#!/bin/sh", f"old=$(cat {pid_file} 2>/dev/null)"]
    lines.append('if [ -n "$old" ] && [ ! -e "/proc/$old" ] && kill -s KILL -- "-$old" 2>/dev/null; then')
    # a killed process holds its port for some moments more; bounded, for a zombie nobody reaps stays
    lines.append('  tries=0; while kill -s 0 -- "-$old" 2>/dev/null && [ $tries -lt 40 ]')
    lines.append("  do sleep 0.05; tries=$((tries + 1)); done")
    lines.append("fi")
    lines.append(f"echo $$ >{pid_file}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(program.environment.items())]
    if program.directory is not None:
        lines.append(f"cd {shlex.quote(str(program.directory))} || exit 1")
    errors = "2>&1" if program.error_path is None else f"2>>{shlex.quote(str(program.error_path))}"
    lines += [f"exec {shlex.join(program.command)} >>{shlex.quote(str(program.log_path))} {errors}", ""]
    return "\n".join(lines)


def render_section(program: Program, script_path: Path, script: str) -> str:
    """supervisord's section. It names the script's digest, so that a changed script is a changed program."""
    digest = hashlib.sha256(script.encode()).hexdigest()[:16]
    return "\n".join(
        (
            f"[program:{program.name}]",
            f"command=/bin/sh {ini_path(shlex.quote(str(script_path)))} {digest}",
            "autostart=true",
            f"autorestart={'true' if program.autorestart else 'false'}",
            f"startsecs={max(0, round(program.start_s))}",
            f"startretries={_START_RETRIES if program.autorestart else 0}",
            f"stopwaitsecs={max(1, round(program.stop_wait_s))}",
            f"priority={program.priority}",
            "stopsignal=TERM",
            f"stopasgroup={'true' if program.stop_group else 'false'}",
            "killasgroup=true",
            "stdout_logfile=NONE",
            "redirect_stderr=true",
            "",
        )
    )


def ini_path(path: Path | str) -> str:
    """A path as supervisord's file wants it: percent signs doubled."""
    return str(path).replace("%", "%%")
