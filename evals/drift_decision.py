"""What follows from drift: the decision table, row by row, over the last windows.

Rolling back needs harm, and concurrent evidence that the previous version does not suffer it.
Drift alone never rolls back: the previous version would meet the same inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from configs.drift import Drift
from evals.drift import BROKEN, INPUTS_CHANGED, Check, Compared, Question
from evals.verdict import Outcome


class Harm(StrEnum):
    """What is known of performance in the window, and of whether the previous version shares it."""

    NONE = "none"
    UNKNOWN = "unknown"
    NEW_VERSION_ONLY = "only the new version"
    BOTH = "both versions"
    NOT_COMPARED = "not compared"


class Action(StrEnum):
    """What is to be done. Several may follow from one row."""

    NOTHING = "nothing"
    LOG = "log"
    HOLD = "hold the ramp"
    ALERT = "alert"
    RETRAIN = "ask for retraining"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True)
class PastWindow:
    """What is remembered of a window: enough to count k of m after a restart.

    `reference` names what it was compared with: windows against another reference do not count.
    """

    ends_at: float
    version: str
    reference: str
    flagged: frozenset[str]
    retrain_asked: bool = False


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the table looks at.

    `recent`: a release is recent, so that the other version is warm. `features_changed`: it is over, and
    the champion that it made has other feature code. `outputs_differ`: the two versions' answers to the
    same traffic differ by more than the policy's output budget. `sustained`: inputs have drifted in all of
    the last m windows.
    """

    inputs: bool = False
    outputs: bool = False
    broken: bool = False
    harm: Harm = Harm.UNKNOWN
    recent: bool = False
    sustained: bool = False
    features_changed: bool = False
    outputs_differ: bool = False
    retrain_asked: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What the table says: `row` names its row, `why` is for people, `next_step` for whoever is alerted."""

    row: str
    actions: tuple[Action, ...]
    why: str
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class DriftVerdict:
    """One window, judged. PASS: nothing alarms; FAIL: something does; no data is INCONCLUSIVE.

    `alarms` are the checks that were flagged in k of the last m windows (broken data: in this one).
    """

    outcome: Outcome
    decision: Decision
    reason: str
    alarms: tuple[Check, ...] = ()
    flagged: tuple[Check, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    rows: int = 0
    reference_rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "outcome": self.outcome.value,
            "row": self.decision.row,
            "actions": [action.value for action in self.decision.actions],
            "reason": self.reason,
            "next_step": self.decision.next_step,
            "rows": self.rows,
            "reference_rows": self.reference_rows,
            "alarms": [check.key for check in self.alarms],
            "checks": [check.as_dict() for check in self.checks],
            "notes": list(self.notes),
        }


def inconclusive(reason: str, *, rows: int = 0, reference_rows: int = 0) -> DriftVerdict:
    """A window that cannot be judged: it is logged, counts for nothing, and passes nothing."""
    decision = Decision("not judged", (Action.LOG,), reason)
    return DriftVerdict(Outcome.INCONCLUSIVE, decision, reason, rows=rows, reference_rows=reference_rows)


def judge(
    policy: Drift,
    compared: Compared,
    history: Sequence[PastWindow],
    *,
    ends_at: float,
    version: str,
    reference: str,
    harm: Harm = Harm.UNKNOWN,
    recent: bool = False,
    features_changed: bool = False,
) -> DriftVerdict:
    """Judge one window (`ends_at`, seconds since the epoch) in the light of those before it."""
    before = relevant(policy, history, ends_at=ends_at, reference=reference)
    alarms = tuple(check for check in compared.flagged if _alarms(policy, check, before, version))
    asked = [past.ends_at for past in history if past.retrain_asked and past.ends_at < ends_at]
    situation = Situation(
        inputs=any(check.question in INPUTS_CHANGED for check in alarms),
        outputs=any(check.question is Question.OUTPUT for check in alarms),
        broken=any(check.question in BROKEN for check in alarms),
        harm=harm,
        recent=recent,
        sustained=_sustained(policy, alarms, before),
        features_changed=features_changed,
        outputs_differ=any(check.question is Question.VERSIONS for check in alarms),
        retrain_asked=bool(asked) and ends_at - max(asked) < policy.retrain_again_s,
    )
    decision = decide(situation)
    quiet = set(decision.actions) <= {Action.NOTHING}
    return DriftVerdict(
        Outcome.PASS if quiet and not alarms else Outcome.FAIL,
        decision,
        _reason(policy, decision, alarms, compared.flagged),
        alarms,
        compared.flagged,
        compared.checks,
        compared.notes,
        compared.rows,
        compared.reference_rows,
    )


def relevant(
    policy: Drift, history: Sequence[PastWindow], *, ends_at: float, reference: str
) -> list[PastWindow]:
    """The windows among the last m that can be counted with this one, newest first."""
    earliest = ends_at - (policy.m - 1) * policy.window_s - 1e-6
    same = [
        past for past in history if past.reference == reference and earliest <= past.ends_at < ends_at - 1e-6
    ]
    return sorted(same, key=lambda past: past.ends_at, reverse=True)[: policy.m - 1]


def decide(situation: Situation) -> Decision:
    """The table. Broken data first, for every other number is then about the pipeline; then harm."""
    if situation.harm is Harm.NEW_VERSION_ONLY:
        return Decision(
            "harm, only the new version",
            (Action.ROLL_BACK, Action.ALERT),
            "performance dropped, and concurrent evidence says that the previous version does not suffer",
        )
    if situation.broken:
        return _broken(situation)
    if situation.harm is Harm.BOTH:
        return _both_suffer(situation)
    if situation.harm is Harm.NOT_COMPARED:
        actions = (Action.HOLD, Action.ALERT) if situation.recent else (Action.ALERT,)
        return Decision(
            "harm, previous version not compared",
            actions,
            "performance dropped; whether the previous version would suffer too is not known, so nothing is "
            "rolled back",
            "compare the versions: shadow the previous one, or decide by hand with interlock rollback",
        )
    if situation.outputs and situation.harm is Harm.UNKNOWN:
        return _outputs_unknown(situation)
    if situation.inputs or situation.outputs:
        return _harmless(situation)
    return Decision("no drift, no harm", (Action.NOTHING,), "nothing alarms")


# -- the table's rows -------------------------------------------------------------------------------


def _harmless(situation: Situation) -> Decision:
    """Inputs (or, with known performance, answers) moved, and nobody is hurt as far as is known."""
    row = "input drift, no harm" if situation.inputs else "output drift, performance is known to be good"
    if situation.recent:
        return Decision(row, (Action.LOG,), "inputs drifted without harm", "check the pipeline")
    if situation.inputs and situation.sustained and not situation.retrain_asked:
        return Decision(
            row,
            (Action.LOG, Action.RETRAIN),
            "inputs have drifted for all of the last windows, without known harm",
            "a version trained on recent data is asked for",
        )
    return Decision(row, (Action.LOG,), "drift without known harm")


def _outputs_unknown(situation: Situation) -> Decision:
    """Answers moved and nobody knows yet whether they are worse."""
    if not situation.inputs:
        if situation.recent and situation.outputs_differ:
            return Decision(
                "output drift, budget broken against the old version",
                (Action.ROLL_BACK, Action.ALERT),
                "answers drifted while inputs did not, and differ from the old version's to the same traffic "
                "by more than drift.budgets.outputs",
            )
        if situation.recent:
            return Decision(
                "output drift alone",
                (Action.HOLD, Action.ALERT),
                "answers drifted while inputs did not, with a release under way",
                "compare the two versions' answers; interlock resume lets the ramp go on",
            )
        return Decision(
            "output drift alone",
            (Action.ALERT,),
            "answers drifted while inputs did not",
            "look at what the version depends on: feature code, look-ups, libraries",
        )
    if situation.recent:
        return Decision(
            "input and output drift",
            (Action.HOLD, Action.ALERT),
            "inputs and answers drifted, with a release under way; performance is not known",
            "shadow the old version on the same traffic; interlock resume lets the ramp go on",
        )
    retrain = () if situation.retrain_asked else (Action.RETRAIN,)
    return Decision(
        "input and output drift",
        (Action.ALERT, *retrain),
        "inputs and answers drifted; performance is not known",
        "label a sample of recent requests",
    )


def _both_suffer(situation: Situation) -> Decision:
    if situation.recent:
        return Decision(
            "harm, both versions",
            (Action.HOLD, Action.ALERT),
            "both versions suffer, so rolling back would not help",
            "look at the pipeline first; interlock resume lets the ramp go on",
        )
    retrain = () if situation.retrain_asked else (Action.RETRAIN,)
    return Decision(
        "harm, both versions",
        (Action.ALERT, *retrain),
        "performance dropped, and the previous version suffers too, so rolling back would not help",
        "look at the pipeline first",
    )


def _broken(situation: Situation) -> Decision:
    if situation.recent and situation.features_changed:
        return Decision(
            "broken, the release changed the feature code",
            (Action.ROLL_BACK, Action.ALERT),
            "schema or missing values broke with a release that changed the feature code",
        )
    actions = (Action.HOLD, Action.ALERT) if situation.recent else (Action.ALERT,)
    return Decision(
        "broken",
        actions,
        "schema or missing values are broken; another version would get the same inputs",
        "mend it upstream; serve a fallback meanwhile",
    )


# -- k of m -----------------------------------------------------------------------------------------


def _alarms(policy: Drift, check: Check, before: Sequence[PastWindow], version: str) -> bool:
    """Broken data alarms at once. Drift alarms in k of m windows; of answers, those of one version."""
    if check.question in BROKEN:
        return True
    counted = [past for past in before if check.question in INPUTS_CHANGED or past.version == version]
    return 1 + sum(check.key in past.flagged for past in counted) >= policy.k


def _sustained(policy: Drift, alarms: Sequence[Check], before: Sequence[PastWindow]) -> bool:
    inputs = {check.key for check in alarms if check.question in INPUTS_CHANGED}
    whole = len(before) == policy.m - 1
    return whole and any(all(key in past.flagged for past in before) for key in inputs)


def _reason(policy: Drift, decision: Decision, alarms: Sequence[Check], flagged: Sequence[Check]) -> str:
    if alarms:
        worst = sorted(alarms, key=lambda check: check.threshold / max(check.effect, 1e-12))
        more = f" (and {len(worst) - 2} more)" if len(worst) > 2 else ""
        return f"{decision.why}: {'; '.join(check.words for check in worst[:2])}{more}"
    if flagged:
        return (
            f"{decision.why}: {len(flagged)} checks are flagged in this window, none in {policy.k} of the "
            f"last {policy.m}"
        )
    return decision.why
