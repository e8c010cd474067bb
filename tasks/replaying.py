"""A past release judged once more: every decision from its stored counts, compared byte for byte.

Reads the journal, or the `decisions.json` of the release's MLflow run, and nothing else: captures, logs and
labels may be gone. Shadow, canary with its soak, and the watch's decisions are made again. What rests on
more than is kept (the resampling of held-out rows, a person's answer) is reported as it was told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.environments import STAGING
from configs.policy import Canary, Policy, Shadow
from configs.settings import Settings
from evals.decisions import Difference, Recorded, Replay, differs, replay_canary, replay_shadow
from evals.load import LoadStep, judge_load
from evals.verdict import Verdict, conclude
from serving.errors import Refused
from serving.journal import Journal
from serving.records import Stage
from tasks.fingerprint import engine
from tasks.watch_record import WATCH_STAGE, replay_watch

KEPT = (Stage.STAGE.value, Stage.SHADOW.value, Stage.CANARY.value, WATCH_STAGE)
"""The stages that leave looks."""


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """All that a release left of its decisions: plain values, no ids of users or requests."""

    id: str
    state: str
    reason: str
    decided_stage: str
    policy: Mapping[str, Any]
    verdicts: Mapping[str, Mapping[str, Any]]
    looks: Mapping[str, Sequence[Recorded]]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StageTold:
    """One stage: how its decision was checked, what it was, and where it first differs.

    `how` is `recomputed` (from counts), `combined` (its findings as stored, their combination made again) or
    `reported` (as stored). `checked` of the `looks` had a stored decision to compare with.
    """

    stage: str
    how: str
    outcome: str
    reason: str
    looks: int = 0
    checked: int = 0
    note: str = ""
    difference: Difference | None = None


@dataclass(frozen=True, slots=True)
class ReplayTold:
    """The whole release, replayed. `engine_then` is "" where none was stored."""

    release: str
    state: str
    reason: str
    stages: tuple[StageTold, ...]
    engine_then: str
    engine_now: str
    size_bytes: int
    same: bool = field(default=True)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def read_record(settings: Settings, name: str) -> ReleaseRecord:
    """A release by its id, or from a file `decisions.json`. Raises `Refused` where there is none."""
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return _from_file(path)
    journal = Journal(settings.journal)
    try:
        row = journal.release(name)
        if row is None:
            known = ", ".join(one.id for one in journal.releases()[:3]) or "none"
            raise Refused(
                f"{name} is no release of this journal (newest: {known}). Next: interlock history ENDPOINT"
            )
        looks = {
            stage: [Recorded(look.number, look.time, look.stats) for look in journal.looks(row.id, stage)]
            for stage in KEPT
        }
    finally:
        journal.close()
    return ReleaseRecord(
        row.id,
        row.state.value,
        row.reason,
        row.decided_stage,
        row.policy,
        row.verdicts,
        looks,
        _size(row.policy, row.verdicts, looks),
    )


def _from_file(path: Path) -> ReleaseRecord:
    try:
        return _from_document(json.loads(path.read_text()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Refused(
            f"{path} is no decisions.json of a release ({type(error).__name__}: {error}). "
            "Next: download it from the release's MLflow run, or give the release's id"
        ) from error


def _from_document(found: Mapping[str, Any]) -> ReleaseRecord:
    looks = {
        stage: [
            Recorded(
                int(look["number"]),
                float(look["time"]),
                {key: value for key, value in look.items() if key not in ("number", "time")},
            )
            for look in kept
        ]
        for stage, kept in found["looks"].items()
    }
    return ReleaseRecord(
        found["release"],
        found["state"],
        found["reason"],
        found["decided_stage"],
        dict(found["policy"]),
        {stage: dict(verdict) for stage, verdict in found["verdicts"].items()},
        looks,
        _size(found["policy"], found["verdicts"], looks),
    )


def _size(policy: Any, verdicts: Any, looks: Mapping[str, Sequence[Recorded]]) -> int:
    stats = [dict(look.stats) for kept in looks.values() for look in kept]
    return len(json.dumps([policy, verdicts, stats]).encode())


def replay_release(record: ReleaseRecord) -> ReplayTold:
    """Every decision of a release, in the order of its stages."""
    told = [
        _stage(record, stage)
        for stage in Stage
        if stage.value in record.verdicts or record.looks.get(stage.value)
    ]
    if record.looks.get(WATCH_STAGE):
        told.append(_watch(record))
    told.append(_ending(record))
    engines = {str(verdict["engine"]) for verdict in record.verdicts.values() if verdict.get("engine")}
    return ReplayTold(
        record.id,
        record.state,
        record.reason,
        tuple(told),
        ", ".join(sorted(engines)),
        engine(),
        record.size_bytes,
        all(stage.difference is None for stage in told),
    )


def _stage(record: ReleaseRecord, stage: Stage) -> StageTold:
    concluded, looks = record.verdicts.get(stage.value), record.looks.get(stage.value, ())
    if stage is Stage.CANARY:
        canary = Canary.model_validate(record.policy["canary"], extra="ignore")
        return _made_again(stage.value, replay_canary(canary, looks), concluded)
    if stage is Stage.SHADOW:
        canary = Canary.model_validate(record.policy["canary"], extra="ignore")
        shadow = Shadow.model_validate(record.policy["shadow"], extra="ignore")
        made = replay_shadow(shadow, canary.errors.margin, canary.latency, looks)
        return _made_again(stage.value, made, concluded)
    if stage is Stage.STAGE and looks:
        return _load_test(record, looks, concluded)
    assert concluded is not None
    if stage is Stage.EVALUATE:
        return _evaluation(concluded)
    return _reported(stage.value, concluded, "a person's or the policy's answer; there are no counts to it")


def _made_again(stage: str, made: Replay, concluded: Mapping[str, Any] | None) -> StageTold:
    shown = concluded or (made.candidates[0].as_dict() if made.candidates else {})
    unchecked = made.looks - made.checked
    note = f"{unchecked} looks were stored without what they decided" if unchecked else ""
    if concluded is None:
        note = "; ".join(part for part in (note, "not concluded") if part)
    return StageTold(
        stage,
        "recomputed",
        str(shown.get("outcome", "")),
        str(shown.get("reason", "")),
        made.looks,
        made.checked,
        note,
        made.against(concluded),
    )


def _evaluation(concluded: Mapping[str, Any]) -> StageTold:
    """The findings rest on rows that are not kept; that the verdict follows from them can be made again."""
    combined = conclude(Verdict.from_dict(concluded).findings)
    difference = None
    if (combined.outcome, combined.reason) != (concluded["outcome"], concluded["reason"]):
        difference = differs(concluded, [combined])
    note = "findings as reported (they rest on the held-out rows); their combination was made again"
    return StageTold(
        Stage.EVALUATE.value,
        "combined",
        concluded["outcome"],
        concluded["reason"],
        note=note,
        difference=difference,
    )


def _load_test(
    record: ReleaseRecord, looks: Sequence[Recorded], concluded: Mapping[str, Any] | None
) -> StageTold:
    """The load test from its measured rates; the smoke test before it is as reported."""
    from configs.environments import policy_in
    from tasks.load_run import budget_of

    try:
        there = policy_in(Policy.model_validate(record.policy, extra="ignore"), STAGING)
    except ValueError:  # pydantic's
        note = "as stored: the policy of then is refused by now, and with it what the load test went by"
        return _reported(Stage.STAGE.value, concluded or {"outcome": "", "reason": ""}, note)
    assert there.load_test is not None
    steps = [LoadStep.from_dict(look.stats) for look in looks]
    made = judge_load(steps, there.load_test, budget_of(there), replicas=there.replicas.count)
    if concluded is not None:
        smoke = [one for one in Verdict.from_dict(concluded).findings if one.metric == "smoke"]
        made = Verdict(made.outcome, made.reason, (*smoke, *made.findings))
    return _made_again(Stage.STAGE.value, Replay(len(looks), len(looks), (made,)), concluded)


def _reported(stage: str, concluded: Mapping[str, Any], note: str) -> StageTold:
    return StageTold(stage, "reported", concluded["outcome"], concluded["reason"], note=note)


def _watch(record: ReleaseRecord) -> StageTold:
    looks = record.looks[WATCH_STAGE]
    difference = replay_watch(looks)
    last = looks[-1].stats["decided"]
    return StageTold(
        WATCH_STAGE,
        "recomputed",
        str(last["step"]),
        str(last["reason"]),
        len(looks),
        len(looks),
        "the looks that found harm and decided on it",
        difference,
    )


def _ending(record: ReleaseRecord) -> StageTold:
    """Whether the release's state follows from its verdicts. What people asked for is as reported."""
    how, difference = "combined", None
    by_verdict = {"PROMOTED": "PASS", "REJECTED": "FAIL"}
    wanted = by_verdict.get(record.state)
    decided = record.verdicts.get(record.decided_stage)
    if wanted is None or decided is None:
        how = "reported"
    elif decided["outcome"] != wanted or decided["reason"] != record.reason:
        difference = Difference(
            None,
            None,
            f"{record.state}: {record.reason}",
            f"{record.decided_stage} is {decided['outcome']}: {decided['reason']}",
        )
    elif record.state == "PROMOTED" and any(one["outcome"] != "PASS" for one in record.verdicts.values()):
        bad = next(name for name, one in record.verdicts.items() if one["outcome"] != "PASS")
        difference = Difference(None, None, "PROMOTED", f"{bad} is {record.verdicts[bad]['outcome']}")
    note = "follows from the verdicts" if how == "combined" and difference is None else ""
    return StageTold("release", how, record.state, record.reason, note=note, difference=difference)
