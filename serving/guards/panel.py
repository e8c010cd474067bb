"""Runs the checks of one stage on a text: in threads, within a time, never further than their failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.guards.checks import Check
from serving.guards.counts import GuardCounts
from serving.guards.personal import Span

logger = logging.getLogger("interlock.guards")

_THREADS_MAX = 64
"""Checks under way at once, those that were given up included: they cannot be ended."""


class CheckFailed(Exception):
    """A check that raised, or did not end in its time."""


@dataclass(frozen=True, slots=True)
class Find:
    """One find of one check."""

    check: Check
    span: Span


@dataclass(frozen=True, slots=True)
class Judged:
    """What a panel says of a text. `failed` is the check that failed where that blocks."""

    finds: tuple[Find, ...] = ()
    failed: str = ""


class Panel:
    """The checks of a stage. `on_error` says whether a failed check blocks."""

    def __init__(
        self,
        stage: Literal["input", "output"],
        checks: Sequence[Check],
        counts: GuardCounts,
        *,
        timeout_s: float,
        on_error: Literal["block", "pass"],
    ) -> None:
        self._stage = stage
        self._checks = checks
        self._counts = counts
        self._timeout_s = timeout_s
        self._blocks = on_error == "block"
        self._running = 0

    def __bool__(self) -> bool:
        """Whether there is any check."""
        return bool(self._checks)

    async def judge(self, text: str) -> Judged:
        """Every check's finds, in the policy's order. Counts failures only: the caller settles finds."""
        finds: list[Find] = []
        for check in self._checks:
            try:
                finds += [Find(check, span) for span in await self._run(check, text)]
            except CheckFailed as failure:
                self._counts.add(self._stage, check.name, "error")
                logger.warning("Check %s of the %s failed: %s", check.name, self._stage, failure)
                if self._blocks:
                    return Judged(tuple(finds), failed=check.name)
        return Judged(tuple(finds))

    def count(self, finds: Sequence[Find]) -> None:
        """Note what was found, once a text and check."""
        for name, action in sorted({(find.check.name, find.check.action) for find in finds}):
            self._counts.add(self._stage, name, action)

    async def _run(self, check: Check, text: str) -> Sequence[Span]:
        """In a thread of its own, which a pool could not lend for ever to a check that never ends."""
        if self._running >= _THREADS_MAX:
            raise CheckFailed(f"{_THREADS_MAX} checks are under way already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[Span]] = loop.create_future()

        def deliver(spans: Sequence[Span], error: BaseException | None) -> None:
            self._running -= 1
            if future.done():
                return
            if error is None:
                future.set_result(spans)
            else:
                future.set_exception(CheckFailed(f"{type(error).__name__}: {error}"))

        def work() -> None:
            spans: Sequence[Span] = ()
            caught: BaseException | None = None
            try:
                spans = check.find(text)
            except BaseException as error:  # noqa: BLE001 - a check may raise anything, SystemExit too
                caught = error
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                loop.call_soon_threadsafe(deliver, spans, caught)

        self._running += 1
        threading.Thread(target=work, name=f"guard-{check.name}", daemon=True).start()
        try:
            return await asyncio.wait_for(future, self._timeout_s)
        except TimeoutError as error:
            raise CheckFailed(f"no answer within {self._timeout_s:g} s") from error
