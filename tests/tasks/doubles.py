"""Doubles for tests of tasks: an in-memory registry, a clock by hand, and deaths on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.messages import Alert
from tasks.registry import ModelVersion


class HandClock:
    """Seconds since the epoch, moved by `sleep` and by hand."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class MemoryRegistry:
    """The registry verbs that transitions use, with MLflow's semantics and no server."""

    aliases: dict[str, str] = field(default_factory=dict)
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logged_by: dict[str, str] = field(default_factory=dict)
    registered_by: dict[str, list[str]] = field(default_factory=dict)

    def version(self, model: str, version: str) -> ModelVersion:
        return ModelVersion(model, version, self.logged_by.get(version, ""), self.tags.get(version, {}))

    def registrants(self, _model: str, version: str) -> list[str]:
        return self.registered_by.get(version, [])

    def aliased(self, _model: str, alias: str) -> str:
        return self.aliases.get(alias, "")

    def point(self, _model: str, alias: str, version: str) -> None:
        self.aliases[alias] = version

    def unpoint(self, _model: str, alias: str, version: str) -> None:
        if self.aliases.get(alias) == version:
            del self.aliases[alias]

    def tag(self, _model: str, version: str, tags: Mapping[str, str]) -> None:
        self.tags.setdefault(version, {}).update(tags)


@dataclass
class MemoryMessenger:
    """Keeps the alerts that would have gone out."""

    sent: list[Alert] = field(default_factory=list)

    def send(self, alert: Alert, _timeout_s: float) -> None:
        self.sent.append(alert)


class Killed(BaseException):
    """Stands for kill -9: nothing in the code under test may catch it."""


class Deadline:
    """Counts effects over several objects and dies before or after a chosen one."""

    def __init__(self, at: int | None, *, after: bool) -> None:
        self._at = at
        self._after = after
        self.count = 0

    def guard(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            mine = self.count == self._at
            if mine and not self._after:
                raise Killed
            result = effect(*args, **kwargs)
            if mine:
                raise Killed
            return result

        return call


class Mortal:
    """An object whose named methods count as effects of a `Deadline`."""

    def __init__(self, inner: Any, deadline: Deadline, effects: tuple[str, ...]) -> None:
        self._inner = inner
        self._deadline = deadline
        self._effects = effects

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._deadline.guard(value) if name in self._effects else value
