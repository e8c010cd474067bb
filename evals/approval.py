"""Whether what people answered amounts to a yes: a rule without I/O.

One no is a no. A yes counts once a person, however often it is given, and whoever registered the
version cannot be the only one to say it. Without enough of them the answer is INCONCLUSIVE: keep
waiting; the caller's time-out makes it a no.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evals.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Answer:
    """What one person said."""

    is_yes: bool
    name: str
    reason: str


def person(name: str) -> str:
    """Whom a name means: `Ann@host`, `ann@example.com` and `ann` are one person."""
    return name.strip().partition("@")[0].strip().casefold()


def judge_answers(answers: Sequence[Answer], *, registrants: Iterable[str], approvers_min: int) -> Verdict:
    """PASS with `approvers_min` different people, one of whom did not register the version."""
    no = next((answer for answer in answers if not answer.is_yes), None)
    if no is not None:
        return Verdict(Outcome.FAIL, f"rejected by {no.name}: {no.reason}")
    said = {who: answer for answer in answers if (who := person(answer.name))}
    own = {who for name in registrants if (who := person(name))}
    others = set(said) - own
    missing = max(approvers_min - len(said), 0 if others else 1)
    if missing == 0:
        words = "; ".join(f"{answer.name}: {answer.reason}" for answer in said.values())
        return Verdict(Outcome.PASS, f"approved by {words}")
    who = "1 more person" if said and missing == 1 else f"{missing} people" if missing > 1 else "1 person"
    reason = f"waits for the approval of {who}"
    if said:
        reason += f" beside {', '.join(answer.name for answer in said.values())}"
    if own and not others:
        reason += f", not only of {', '.join(sorted(own))}, who registered the version"
    return Verdict(Outcome.INCONCLUSIVE, reason)
