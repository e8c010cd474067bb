"""Does the previous version suffer too? The concurrent control of a watch, and what follows from it.

Harm alone never rolls back: a broken pipeline breaks every version, and going back would only add
a change. So recent requests are replayed to the version that serves and to the previous one, in
random order under the same conditions, and pairs are compared (`evals.sequential.Paired`; null:
among pairs that differ, either version is as likely to be the bad one). The answer is

    BETTER   the previous version fails significantly less, and removes enough of the harm
    BOTH     the previous version is over the level as well: going back would not help
    WORSE    better where the harm is, but significantly worse at another level: a person decides
    UNKNOWN  the replays do not tell the versions apart (yet)

The decision table is that of docs/watching.md; whatever is not BETTER leaves traffic alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from configs.watch import Control
from evals.sequential import LEVELS, Paired, combine
from evals.watch import ERRORS, QUALITY, Harm, Level
from evals.wording import capped_e, e_text


@dataclass(frozen=True, slots=True)
class Answered:
    """One request as both versions answered it now. Milliseconds."""

    champion_failed: bool
    champion_ms: float
    previous_failed: bool
    previous_ms: float


@dataclass(frozen=True, slots=True)
class Cells:
    """Pairs of one level by who was bad."""

    neither: int = 0
    champion_only: int = 0
    previous_only: int = 0
    both: int = 0

    @property
    def pairs(self) -> int:
        """All of them."""
        return self.neither + self.champion_only + self.previous_only + self.both

    @property
    def champion_rate(self) -> float:
        """Share on which the version that serves was bad."""
        return (self.champion_only + self.both) / max(self.pairs, 1)

    @property
    def previous_rate(self) -> float:
        """Share on which the previous version was bad."""
        return (self.previous_only + self.both) / max(self.pairs, 1)

    def plus(self, other: Cells) -> Cells:
        """The sum."""
        return Cells(*(getattr(self, name) + getattr(other, name) for name in Cells.__dataclass_fields__))

    def as_dict(self) -> dict[str, int]:
        """Plain values, for JSON."""
        return asdict(self)


def count_answers(answers: Sequence[Answered], levels: Sequence[Level]) -> dict[str, Cells]:
    """The pairs by level; quality is left out, which only labelled requests show."""
    found: dict[str, Cells] = {}
    for level in levels:
        if level.name != ERRORS and level.budget_ms is None:
            continue
        table = {(False, False): 0, (True, False): 0, (False, True): 0, (True, True): 0}
        for one in answers:
            champion, previous = one.champion_failed, one.previous_failed
            if level.budget_ms is not None:
                champion |= one.champion_ms > level.budget_ms
                previous |= one.previous_ms > level.budget_ms
            table[champion, previous] += 1
        found[level.name] = Cells(*table.values())
    return found


class ControlAnswer(StrEnum):
    """What the replays say; see the module."""

    BETTER = "BETTER"
    BOTH = "BOTH"
    WORSE = "WORSE"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class ControlVerdict:
    """The answer with its numbers. `is_final` says that more replays are not worth waiting for."""

    answer: ControlAnswer
    reason: str
    is_final: bool
    pairs: int = 0
    evidence: float | None = None


def judge_control(
    policy: Control, alpha: float, harms: Sequence[Harm], cells: Mapping[str, Cells], levels: Sequence[Level]
) -> ControlVerdict:
    """What the pairs so far say about going back; may be asked after every pair.

    The harmed levels' e-values are averaged, which is an e-value under any dependence.
    """
    asked = [harm.level for harm in harms if harm.level.name in cells]
    if not asked:
        return ControlVerdict(ControlAnswer.UNKNOWN, "replays cannot show this harm", is_final=True)
    needed = math.log(1 / alpha)
    log_es = {level.name: _log_worse(cells[level.name]) for level in asked}
    log_e = float(combine(list(log_es.values()), [1.0] * len(log_es)))
    worst = max(asked, key=lambda level: log_es[level.name])
    seen = cells[worst.name]
    words = (
        f"of {seen.pairs} replayed requests the champion is bad on {seen.champion_rate:.1%}, "
        f"the previous version on {seen.previous_rate:.1%}"
    )

    def says(answer: ControlAnswer, reason: str, *, is_final: bool = True) -> ControlVerdict:
        return ControlVerdict(answer, reason, is_final, seen.pairs, capped_e(log_e))

    removes = seen.previous_rate <= (1 - policy.removes) * seen.champion_rate
    if log_e >= needed and removes:
        for level in levels:
            if level.name in cells and _log_worse(_mirrored(cells[level.name])) >= needed:
                reason = f"{words} ({worst.name}), but it is worse at {level.name}"
                return says(ControlAnswer.WORSE, reason)
        reason = f"{words} ({worst.name}; E = {e_text(log_e)} of {1 / alpha:g})"
        return says(ControlAnswer.BETTER, reason)
    if seen.pairs >= policy.min_pairs and not removes and _log_over(worst, seen) >= needed:
        reason = f"{words} ({worst.name}, the level is {worst.limit:g}): both versions suffer"
        return says(ControlAnswer.BOTH, reason)
    reason = f"{words} ({worst.name}): that does not tell them apart"
    return says(ControlAnswer.UNKNOWN, reason, is_final=seen.pairs >= policy.pairs)


class PreviousState(StrEnum):
    """What stands in the way of asking the previous version, or of going back to it."""

    WARM = "WARM"
    NONE = "NONE"
    UNHEALTHY = "UNHEALTHY"
    INCOMPATIBLE = "INCOMPATIBLE"
    RELEASING = "RELEASING"
    AWAY = "AWAY"


@dataclass(frozen=True, slots=True)
class Previous:
    """The version that a rollback would return to. `note` says why it is not simply there."""

    version: str
    state: PreviousState
    note: str = ""


class Step(StrEnum):
    """What the watch does."""

    GO_ON = "GO_ON"
    ROLL_BACK = "ROLL_BACK"
    ASK = "ASK"
    ALERT = "ALERT"


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows, why, and what a person would do next; `about` names the row of the table."""

    step: Step
    reason: str
    next_step: str = ""
    about: str = ""


def decide(
    endpoint: str,
    champion: str,
    harms: Sequence[Harm],
    previous: Previous,
    control: ControlVerdict | None,
    *,
    may_roll_back: bool,
) -> Decision:
    """The decision table: only harm that the previous version would not suffer goes back.

    `control` is None as long as nobody was asked.
    """
    if not harms:
        return Decision(Step.GO_ON, "no evidence of harm")
    harm = "; ".join(found.finding.reason for found in harms)
    stays = f"traffic stays on version {champion}"
    look = f"interlock status {endpoint}"
    about = previous.state.value
    if previous.state is PreviousState.WARM:
        return _with_control(endpoint, harm, stays, control, may_roll_back=may_roll_back)
    match previous.state:
        case PreviousState.RELEASING:
            reason = f"{harm}. A release is under way: its ramp is paused, {stays}"
            next_step = f"{look}; then interlock resume {endpoint}, or abort"
        case PreviousState.NONE:
            reason = f"{harm}. No previous version is known: {stays}"
            next_step = f"interlock release {endpoint} VERSION, or mend its inputs"
        case PreviousState.UNHEALTHY:
            reason = (
                f"{harm}. The previous version {previous.version} is not healthy: {stays} ({previous.note})"
            )
            next_step = f"interlock logs; {look}"
        case PreviousState.INCOMPATIBLE:
            reason = f"{harm}. Going back would break clients: {stays} ({previous.note})"
            next_step = f'interlock rollback {endpoint} --force --reason "..."'
        case _:  # away
            other = f"version {previous.version}" if previous.version else "the version before"
            reason = f"{harm}. Whether {other} suffers too is not known: {stays} ({previous.note})"
            next_step = _by_hand(endpoint)
    return Decision(Step.ALERT, reason, next_step, about)


def _with_control(
    endpoint: str, harm: str, stays: str, control: ControlVerdict | None, *, may_roll_back: bool
) -> Decision:
    """The rows of the table that end with what the replays say."""
    if control is None or (control.answer is ControlAnswer.UNKNOWN and not control.is_final):
        return Decision(Step.ASK, harm)
    about, next_step = control.answer.value, _by_hand(endpoint)
    told = f"{harm}. {control.reason[:1].upper()}{control.reason[1:]}"
    if control.answer is ControlAnswer.BETTER:
        if may_roll_back:
            return Decision(Step.ROLL_BACK, told, "", about)
        reason = f"{told}. watch.roll_back is off: {stays}"
    elif control.answer is ControlAnswer.BOTH:
        reason = f"{told}. Going back would not help: {stays}"
        next_step = "look at the inputs and what the model depends on first"
    else:
        reason = f"{told}: {stays}"
    return Decision(Step.ALERT, reason, next_step, about)


def _by_hand(endpoint: str) -> str:
    return f'{endpoint} can be taken back by hand: interlock rollback {endpoint} --reason "..."'


def _log_worse(cells: Cells) -> float:
    process = Paired(worse=True)
    process.update(cells.champion_only, cells.previous_only, cells.neither + cells.both)
    return float(process.log_e)


def _mirrored(cells: Cells) -> Cells:
    return Cells(cells.neither, cells.previous_only, cells.champion_only, cells.both)


def _log_over(level: Level, cells: Cells) -> float:
    """Log e-value of 'the previous version is over the level, too'."""
    process = level.process()
    bad = cells.previous_only + cells.both
    good = cells.pairs - bad
    # scores come as good or bad here (`evals.quality.is_bad`): the two ends of the scale
    process.update((good, *(0,) * (len(LEVELS) - 2), bad) if level.name == QUALITY else (good, bad))
    return float(process.log_e)
