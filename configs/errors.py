"""Errors of this room.

ConfigError
├── SettingsInvalid         an INTERLOCK_* variable or configs/local.yaml cannot be used
└── PolicyError             a policy file cannot be used; lists every problem at once
    ├── PolicyNotFound          there is no such file
    ├── PolicySyntaxError       it is not YAML
    └── PolicyInvalid           it is YAML, but not a policy
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `key` is the full path ("" for the whole file), `line` counts from 1."""

    key: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.key} {self.message}" if self.key else f"{place}{self.message}"


class ConfigError(Exception):
    """Base of all errors raised by configs/."""


class SettingsInvalid(ConfigError):
    """An INTERLOCK_* variable or configs/local.yaml cannot be used."""


class PolicyError(ConfigError):
    """A policy file cannot be used. `problems` holds every reason; `path` the file."""

    def __init__(self, path: Path, problems: tuple[Problem, ...], next_step: str) -> None:
        self.path = path
        self.problems = problems
        lines = [
            f"Policy {path} was refused:",
            *(f"  {problem}" for problem in problems),
            f"Next: {next_step}",
        ]
        super().__init__("\n".join(lines))


class PolicyNotFound(PolicyError):
    """There is no such file."""


class PolicySyntaxError(PolicyError):
    """The file is not YAML."""


class PolicyInvalid(PolicyError):
    """The file is YAML, but not a policy."""
