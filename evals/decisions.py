"""What a look decided, in a form that can be compared byte for byte, and made again from its counts.

A decision rests on the policy and on counts alone (`StoredLook`, `PairCounts`), so a past release can be
judged once more after captures, logs and labels are gone. Decisions are compared by the digest of their
canonical JSON. There numbers have nine digits: the last bits of a logarithm depend on the processor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from configs.policy import Canary, Latency, Shadow
from evals.canary import CanaryJudge, Look
from evals.looks import LatencyThresholds, StoredLook
from evals.ramp import NextStep, next_step
from evals.shadow import PairCounts, ShadowJudge, no_shadow, out_of_time
from evals.verdict import Outcome, Verdict

_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Decision:
    """All that one look of the canary decides; `following` is None while the judge holds the ramp."""

    look: Look
    following: NextStep | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "verdict": self.look.verdict.as_dict(),
            "advance": self.look.advance.as_dict(),
            "next": None if self.following is None else asdict(self.following),
        }

    @property
    def summary(self) -> dict[str, Any]:
        """What is stored with the look: some 120 bytes, whatever the policy."""
        return {
            "verdict": self.look.verdict.outcome.value,
            "advance": self.look.advance.outcome.value,
            "step": None if self.following is None else self.following.step,
            "digest": digest(self.as_dict()),
        }


def decide(policy: Canary, judge: CanaryJudge, stored: StoredLook) -> Decision:
    """Take one look: the verdict, and the step that the ramp may take, from stored numbers only."""
    look = judge.take(stored)
    if look.advance.outcome is not Outcome.PASS:
        return Decision(look)
    rate = stored.requests_at_step / max(stored.seconds_at_step, policy.look_every_s)
    excess = look.numbers.get("difference/errors/high")
    return Decision(look, next_step(policy, stored.step, excess_high=excess, requests_per_s=rate))


def unresolved(verdict: Verdict, looks: int) -> Verdict:
    """The end of a canary that has had all the looks that are kept: it is held, never passed."""
    reason = f"no decision within {looks} looks: {verdict.reason}"
    return Verdict(
        Outcome.INCONCLUSIVE,
        reason,
        verdict.findings,
        verdict.eta_units,
        "a new release: wider margins, "
        "more traffic, or a longer canary.look_every_s; this one keeps no more looks",
    )


def canonical(value: Any) -> str:
    """The one JSON text of plain values: sorted keys, no spaces, nine digits."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, its first 128 bits in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(of) for of in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


# -- once more ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recorded:
    """One look as it was stored; `time` in seconds since the epoch."""

    number: int
    time: float
    stats: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first decision that does not come out as it was stored; `look` is None for a stage's verdict."""

    look: int | None
    time: float | None
    stored: str
    recomputed: str


@dataclass(frozen=True, slots=True)
class Replay:
    """A stage's decisions made again. `checked` of its `looks` had a stored decision to compare with.

    `candidates` are what the stage's verdict may be: that of the last look, or the same when it was held.
    """

    looks: int
    checked: int
    candidates: tuple[Verdict, ...] = ()
    difference: Difference | None = None

    def against(self, concluded: Mapping[str, Any] | None) -> Difference | None:
        """What differs first: a look, or the verdict that the stage was concluded with (None: it was not)."""
        if self.difference is not None or concluded is None:
            return self.difference
        return differs(concluded, self.candidates)


def differs(concluded: Mapping[str, Any], candidates: Iterable[Verdict]) -> Difference | None:
    """Whether a stored verdict is none of these; keys that it was not stored with are not asked for."""
    found = list(candidates)
    for verdict in found:
        made = {key: value for key, value in verdict.as_dict().items() if key in concluded}
        kept = {key: concluded[key] for key in made}
        if canonical(made) == canonical(kept):
            return None
    stored = f"{concluded['outcome']}: {concluded['reason']}"
    recomputed = f"{found[0].outcome}: {found[0].reason}" if found else "no verdict"
    return Difference(None, concluded.get("time"), stored, recomputed)


def replay_canary(policy: Canary, looks: Iterable[Recorded]) -> Replay:
    """Every decision of a canary. A look without counts but with thresholds begins it (anew)."""
    judge: CanaryJudge | None = None
    last: Decision | None = None
    allowed: tuple[int, int | None] | None = None
    number = checked = 0
    difference: Difference | None = None
    for recorded in looks:
        stats = recorded.stats
        if "groups" not in stats:
            thresholds = LatencyThresholds.from_dict(stats["thresholds"])
            judge, allowed = CanaryJudge(policy, thresholds, quality=policy.quality is not None), None
            continue
        if judge is None:
            difference = difference or Difference(
                recorded.number, recorded.time, "a look", "no look has the thresholds that it was judged by"
            )
            break
        number += 1
        stored = StoredLook.from_dict(stats)
        last = decide(policy, judge, stored)
        kept = stats.get("decided")
        if kept is None:
            continue
        checked += 1
        made = last.summary
        if difference is None:
            difference = _jump(recorded, stored.step, allowed)
        if difference is None and canonical(kept) != canonical(made):
            told = _told(made, last.look.verdict)
            difference = Difference(recorded.number, recorded.time, _told(kept), told)
        allowed = stored.step, made["step"]
    if last is None:
        return Replay(number, checked, (), difference)
    verdict = last.look.verdict
    return Replay(number, checked, (verdict, unresolved(verdict, number)), difference)


def _jump(recorded: Recorded, step: int, allowed: tuple[int, int | None] | None) -> Difference | None:
    """Whether a look was taken at a step to which no decision had let the ramp go."""
    if allowed is None or step <= allowed[0] or step == allowed[1]:
        return None
    to = allowed[0] if allowed[1] is None else allowed[1]
    went, may = f"taken at step {step + 1}", f"the ramp was let go to step {to + 1} at most"
    return Difference(recorded.number, recorded.time, went, may)


def replay_shadow(policy: Shadow, margin: float, latency: Latency, looks: Iterable[Recorded]) -> Replay:
    """Every decision of a shadow. Pairs with another champion are another judge's."""
    if not policy.enabled:
        return Replay(0, 0, (no_shadow(policy),))
    judges: dict[str, ShadowJudge] = {}
    verdict = ShadowJudge(policy, margin, latency).look(PairCounts())
    number = checked = 0
    difference: Difference | None = None
    for recorded in looks:
        champion = str(recorded.stats.get("champion", ""))
        judge = judges.setdefault(champion, ShadowJudge(policy, margin, latency))
        verdict = judge.look(PairCounts.from_dict(recorded.stats["counts"]))
        number += 1
        kept = recorded.stats.get("decided")
        if kept is None:
            continue
        checked += 1
        made = pair_summary(verdict)
        if difference is None and canonical(kept) != canonical(made):
            difference = Difference(recorded.number, recorded.time, _told(kept), _told(made, verdict))
    return Replay(number, checked, (verdict, out_of_time(policy, verdict)), difference)


def pair_summary(verdict: Verdict) -> dict[str, Any]:
    """What is stored with a look of the shadow."""
    return {"verdict": verdict.outcome.value, "digest": digest(verdict.as_dict())}


def _told(summary: Mapping[str, Any], verdict: Verdict | None = None) -> str:
    words = str(summary["verdict"])
    if summary.get("advance") is not None:
        words += f", advance {summary['advance']}"
    if summary.get("step") is not None:
        words += f" to step {summary['step'] + 1}"
    words += f" [{summary['digest'][:8]}]"
    return words if verdict is None else f"{words}: {verdict.reason}"
