"""What a decision looks like: a verdict, and the findings that carry its numbers.

`evals/` returns these and nothing else. A verdict is data: it can be stored, compared and
shown, and it never acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """The four things that evidence can say. They are never merged into a bool.

    Only `PASS` lets a version advance, and only `FAIL` rejects one. `INCONCLUSIVE` means that
    the evidence does not suffice yet (no data is INCONCLUSIVE, never PASS), `ERROR` that the
    question could not be asked (a metric that raised, telemetry that is missing).
    """

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


_PASSES_SHOWN = 4
_SEVERITY = {Outcome.FAIL: 3, Outcome.ERROR: 2, Outcome.INCONCLUSIVE: 1, Outcome.PASS: 0}


@dataclass(frozen=True, slots=True)
class Finding:
    """One question asked of the evidence, with its answer in numbers.

    `candidate` and `champion` are point estimates in the unit of `metric`; `low` and `high`
    bound the difference candidate minus champion; `evidence` is an e-value and `needed` the
    e-value at which this finding decides (1/alpha); `bound` is the difference at the margin (-0.0 or
    below where more is better). Whatever does not apply is None. A finding
    that does not block informs only: no verdict rests on it.
    """

    metric: str
    outcome: Outcome
    reason: str
    candidate: float | None = None
    champion: float | None = None
    low: float | None = None
    high: float | None = None
    evidence: float | None = None
    needed: float | None = None
    units: int | None = None
    blocks: bool = True
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of one stage at one moment, with every finding it rests on.

    `reason` is one sentence that a human can act on. `eta_units` is how many more candidate
    units the undecided question is expected to need (None when nothing is undecided or no
    estimate exists). `would_change` says what would change the decision ("" where nobody asked).
    """

    outcome: Outcome
    reason: str
    findings: tuple[Finding, ...] = ()
    eta_units: float | None = None
    would_change: str = ""

    @property
    def passed(self) -> bool:
        """Whether this lets a version advance."""
        return self.outcome is Outcome.PASS

    @property
    def failed(self) -> bool:
        """Whether this rejects a version."""
        return self.outcome is Outcome.FAIL

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Verdict:
        """The inverse of `as_dict`; other keys are ignored."""
        findings: list[Finding] = []
        for found in stored["findings"]:
            plain: dict[str, Any] = {**found, "outcome": Outcome(found["outcome"])}
            findings.append(Finding(**plain))
        eta, change = stored.get("eta_units"), str(stored.get("would_change", ""))
        return cls(Outcome(stored["outcome"]), stored["reason"], tuple(findings), eta, change)


def conclude(findings: tuple[Finding, ...], *, nothing: str = "no evidence at all") -> Verdict:
    """Combine findings: the gravest one that blocks decides (FAIL, then ERROR, INCONCLUSIVE, PASS).

    None that blocks is INCONCLUSIVE with the reason `nothing`: what was not asked never passes.
    """
    blocking = [finding for finding in findings if finding.blocks]
    if not blocking:
        return Verdict(Outcome.INCONCLUSIVE, nothing, findings)
    gravest = max((finding.outcome for finding in blocking), key=_SEVERITY.__getitem__)
    deciding = [finding.reason for finding in blocking if finding.outcome is gravest]
    shown = _PASSES_SHOWN if gravest is Outcome.PASS else 1
    reason = "; ".join(deciding[:shown])
    if len(deciding) > shown:
        reason += f" (and {len(deciding) - shown} more)"
    return Verdict(gravest, reason, findings)
