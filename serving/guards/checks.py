"""The checks of a policy as callables: built in, or the operator's own by their dotted name."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from configs.guards import INJECTION_PHRASES, KINDS, PERSONAL, PHRASES, Action, GuardCheck
from serving.guards import phrases
from serving.guards.personal import Span, find_personal

Find = Callable[[str], Sequence[Span]]
"""The finds in a text. May raise, may take long, is called from a thread."""

_WINDOW, _WINDOW_OVERLAP = 4_000, 300


class UnknownCheck(Exception):
    """A check that this process cannot run; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Check:
    """A check under its name in the policy."""

    name: str
    action: Action
    find: Find


def build_checks(checks: Iterable[GuardCheck], *, timeout_s: float) -> tuple[Check, ...]:
    """The policy's checks, imported and tried on a short text. Raises `UnknownCheck`."""
    return tuple(Check(check.check, check.action, _find(check, timeout_s)) for check in checks)


def _find(check: GuardCheck, timeout_s: float) -> Find:
    if check.check == PHRASES:
        return _windowed(phrases.phrase_finder(check.phrases, "phrase"), timeout_s)
    if check.check == INJECTION_PHRASES:
        return _windowed(phrases.phrase_finder(phrases.INJECTION_PHRASES, "injection"), timeout_s)
    if check.check == PERSONAL:
        return _windowed(_personal(check), timeout_s)
    return _imported(check.check)


def _personal(check: GuardCheck) -> Find:
    kinds = check.kinds or KINDS
    try:
        find_personal("+1 415 555 2671 ann@example.com", kinds)  # the first call loads Presidio
    except ImportError as error:
        raise UnknownCheck(
            f"The check `{PERSONAL}` needs Presidio, which is not installed ({error}). "
            "Next: install the extra `llm`."
        ) from error
    return lambda text: find_personal(text, kinds)


def _windowed(find_in: Find, timeout_s: float) -> Find:
    """Window by window: a long text can be given up, and other threads get their turn in between.

    A regular expression holds the interpreter until it is through.
    """

    def find(text: str) -> list[Span]:
        until = time.monotonic() + timeout_s
        found: dict[tuple[int, int], Span] = {}
        for start in range(0, max(len(text) - _WINDOW_OVERLAP, 1), _WINDOW - _WINDOW_OVERLAP):
            if time.monotonic() > until:
                raise TimeoutError(f"looked at {start} of {len(text)} characters")
            for span in find_in(text[start : start + _WINDOW]):
                place = (start + span.start, start + span.end)
                found[place] = Span(span.kind, *place)
        return [found[place] for place in sorted(found)]

    return find


def _imported(name: str) -> Find:
    module, _, attribute = name.rpartition(".")
    try:
        called: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UnknownCheck(
            f"The check {name} cannot be imported: {error}. Next: install its package into the environment "
            "of Interlock, or correct serving.guards."
        ) from error
    if not callable(called):
        raise UnknownCheck(f"The check {name} is no callable. Next: name a function.")

    def find(text: str) -> list[Span]:
        return spans_of(called(text), len(text))

    return find


def spans_of(found: object, length: int) -> list[Span]:
    """What a check returned, checked itself. Raises ValueError for anything but places in the text."""
    spans: list[Span] = []
    for one in cast("Iterable[Any]", found or ()):
        kind, start, end = (one.kind, one.start, one.end) if isinstance(one, Span) else one
        if not (isinstance(kind, str) and 0 <= int(start) < int(end) <= length):
            raise ValueError(f"{one!r} is no (kind, start, end) within {length} characters")
        spans.append(Span(kind, int(start), int(end)))
    return spans
