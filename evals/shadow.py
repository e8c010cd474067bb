"""The shadow's judge: the candidate answered copies of live requests; nobody saw its answers.

Both versions answered the same question, so pairs are compared: errors by the discordant pairs,
outputs against the policy's budget of disagreement, latency by discordant exceedances on the
subsample that was replayed to both. The weighted mean of these e-processes rejects at 1/alpha;
passing needs the minimum of pairs AND evidence that errors and disagreement are within bounds.
The null of a paired test is per pair (either version is as likely to be the one that fails), so
pairs need not be alike; they should be different requests, for a repeated one says nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from configs.policy import Latency, Shadow
from evals.looks import LatencyThresholds
from evals.sequential import BINARY, OneSample, Paired, combine, odds_times, times, units_to_go
from evals.verdict import Finding, Outcome, Verdict
from evals.wording import capped_e, e_text, lacking_text

WEIGHTS = {"errors": 0.5, "disagreement": 0.3, "latency": 0.2}
PASS_AT = 20.0
"""E-value at which the absence of harm counts as shown."""
_LOG_PASS = math.log(PASS_AT)


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Pairs of one look. All numbers are counts, so they can be stored and added up.

    `disagreeing` counts among `both_fine`, of which `uncompared` say nothing of outputs: nobody could read
    the answers, or a sample is judged and these are not in it. `slower` maps a quantile to (only the
    candidate over the threshold, only the champion over it), among the `timed` pairs of the subsample that
    was replayed to both versions.
    """

    both_fine: int = 0
    candidate_bad: int = 0
    champion_bad: int = 0
    both_bad: int = 0
    disagreeing: int = 0
    timed: int = 0
    slower: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    uncompared: int = 0

    @property
    def compared(self) -> int:
        """Pairs whose outputs were compared."""
        return self.both_fine - self.uncompared

    @property
    def pairs(self) -> int:
        """All pairs."""
        return self.both_fine + self.candidate_bad + self.champion_bad + self.both_bad

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("both_fine", "candidate_bad", "champion_bad", "both_bad", "disagreeing", "timed")
        return {
            **{name: getattr(self, name) for name in (*names, "uncompared")},
            "slower": {quantile: list(numbers) for quantile, numbers in self.slower.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PairCounts:
        """The inverse of `as_dict`."""
        slower = {name: (int(pair[0]), int(pair[1])) for name, pair in data["slower"].items()}
        names = ("both_fine", "candidate_bad", "champion_bad", "both_bad", "disagreeing", "timed")
        uncompared = int(data.get("uncompared", 0))  # releases of before know of none
        return cls(*(int(data[name]) for name in names), slower=slower, uncompared=uncompared)

    def __add__(self, other: PairCounts) -> PairCounts:
        """All pairs of both looks."""
        names = dict.fromkeys([*self.slower, *other.slower])
        slower = {
            name: (
                self.slower.get(name, (0, 0))[0] + other.slower.get(name, (0, 0))[0],
                self.slower.get(name, (0, 0))[1] + other.slower.get(name, (0, 0))[1],
            )
            for name in names
        }
        return PairCounts(
            self.both_fine + other.both_fine,
            self.candidate_bad + other.candidate_bad,
            self.champion_bad + other.champion_bad,
            self.both_bad + other.both_bad,
            self.disagreeing + other.disagreeing,
            self.timed + other.timed,
            slower,
            self.uncompared + other.uncompared,
        )


def count_slower(
    candidate_ms: ArrayLike, champion_ms: ArrayLike, thresholds: LatencyThresholds, *, tolerance: float
) -> dict[str, tuple[int, int]]:
    """Discordant exceedances of paired latencies (ms, same order); the candidate's divided by 1 + tolerance.

    `thresholds` come from champion latencies of earlier pairs under the same conditions.
    """
    ours = np.asarray(candidate_ms, np.float64) / (1 + tolerance)
    theirs = np.asarray(champion_ms, np.float64)
    counts: dict[str, tuple[int, int]] = {}
    for name, limit in thresholds.ms.items():
        over_b, over_a = ours > limit, theirs > limit
        counts[name] = (int(np.count_nonzero(over_b & ~over_a)), int(np.count_nonzero(over_a & ~over_b)))
    return counts


def no_shadow(policy: Shadow) -> Verdict:
    """What a policy without a shadow decides at once."""
    return Verdict(Outcome.PASS, f"no shadow, by the policy: {policy.reason}")


def out_of_time(policy: Shadow, verdict: Verdict) -> Verdict:
    """The end of a shadow that its time left undecided: held for a person, never passed."""
    reason = f"no decision within {policy.timeout_s:g} s: {verdict.reason}"
    return Verdict(Outcome.INCONCLUSIVE, reason, verdict.findings, verdict.eta_units, verdict.would_change)


class ShadowJudge:
    """Judges one release's shadow from its pair counts, look by look."""

    def __init__(self, policy: Shadow, error_margin: float, latency: Latency) -> None:
        self._policy = policy
        self._margin = error_margin
        self._tolerance = latency.tolerance
        self._log_reject = math.log(1 / policy.alpha)
        self._worse_errors = Paired(worse=True)
        self._fine_errors = Paired(worse=False, margin=error_margin)
        budget = policy.max_disagreement
        self._over = OneSample(budget, odds_times(1.2, 1.5, 2, 4, 10), [1] * 5, worse=True, levels=BINARY)
        self._within = OneSample(budget, times(0.8, 0.5, 0.2), [1] * 3, worse=False, levels=BINARY)
        self._slower: dict[str, Paired] = {}
        self._total = PairCounts()
        self._ended: Verdict | None = None

    @property
    def total(self) -> PairCounts:
        """All pairs so far."""
        return self._total

    def look(self, counts: PairCounts) -> Verdict:
        """Take one look's pairs and say what they mean together with all earlier ones.

        FAIL stays. `eta_units` is in pairs. Latency quantiles are those of the first look that
        has any; later ones must not bring new names (ValueError), for weights are fixed at the start.
        """
        self._play(counts)
        self._total = self._total + counts
        if self._ended is not None:
            return self._ended
        log_harm = self._log_harm()
        if log_harm >= self._log_reject:
            self._ended = self._reject(log_harm)
            return self._ended
        findings = (self._errors_finding(), self._disagreement_finding())
        etas = (self._errors_eta(), self._disagreement_eta(), self._lacking_eta())
        eta = (
            None
            if any(value is None for value in etas)
            else max(value for value in etas if value is not None)
        )
        open_questions = [finding.reason for finding in findings if finding.outcome is not Outcome.PASS]
        if self._lacking() > 0:
            open_questions.insert(0, self._lacking_text())
        if open_questions:
            change = self._open_change(open_questions, log_harm)
            return Verdict(Outcome.INCONCLUSIVE, "; ".join(open_questions), findings, eta, change)
        weakest = min(findings, key=lambda finding: finding.evidence or 0.0)
        change = f"E under {PASS_AT:g} on errors or disagreement would have held it; the weakest is "
        change += f"{weakest.metric} with {weakest.evidence:.3g}"
        reason = "; ".join(finding.reason for finding in findings)
        return Verdict(Outcome.PASS, reason, findings, 0.0, change)

    @property
    def numbers(self) -> dict[str, float]:
        """For plots over time; evidence as log10 of the e-value."""
        total = self._total
        logs = {
            "rollback": self._log_harm(),
            "errors_worse": float(self._worse_errors.log_e),
            "errors_fine": float(self._fine_errors.log_e),
            "disagreement_over": float(self._over.log_e),
            "disagreement_within": float(self._within.log_e),
        }
        return {
            "pairs": float(total.pairs),
            "timed": float(total.timed),
            "rate/errors/candidate": (total.candidate_bad + total.both_bad) / max(total.pairs, 1),
            "rate/errors/champion": (total.champion_bad + total.both_bad) / max(total.pairs, 1),
            "rate/disagreement": total.disagreeing / max(total.compared, 1),
            **{f"evidence_log10/{name}": value / math.log(10) for name, value in logs.items()},
        }

    def _play(self, counts: PairCounts) -> None:
        alike = counts.both_fine + counts.both_bad
        for process in (self._worse_errors, self._fine_errors):
            process.update(counts.candidate_bad, counts.champion_bad, alike)
        outputs = [counts.compared - counts.disagreeing, counts.disagreeing]
        self._over.update(outputs)
        self._within.update(outputs)
        if counts.slower and not self._slower:
            self._slower = {name: Paired(worse=True) for name in counts.slower}
        new = [name for name in counts.slower if name not in self._slower]
        if new:
            raise ValueError(
                f"Latency of {', '.join(new)} was not counted from the start. Next: keep the thresholds."
            )
        for name, (candidate_only, champion_only) in counts.slower.items():
            self._slower[name].update(candidate_only, champion_only, 0)

    def _log_slower(self) -> float:
        logs = [float(process.log_e) for process in self._slower.values()]
        return float(combine(logs, np.ones(len(logs)))) if logs else 0.0

    def _log_harm(self) -> float:
        logs = [float(self._worse_errors.log_e), float(self._over.log_e), self._log_slower()]
        return float(combine(logs, list(WEIGHTS.values())))

    def _lacking(self) -> int:
        return self._policy.min_pairs - (self._total.pairs - self._total.uncompared)

    def _lacking_text(self) -> str:
        total = self._total
        text = f"{total.pairs - total.uncompared} of at least {self._policy.min_pairs} pairs"
        return f"{text} ({total.uncompared} more were not compared)" if total.uncompared else text

    def _lacking_eta(self) -> float:
        total = self._total
        return max(self._lacking(), 0) * max(total.pairs, 1) / max(total.pairs - total.uncompared, 1)

    def _reject(self, log_harm: float) -> Verdict:
        total = self._total
        slowest = max(self._slower, key=lambda name: float(self._slower[name].log_e), default="")
        only, not_only = total.slower.get(slowest, (0, 0))
        limit = self._policy.max_disagreement
        slack = 1 + self._tolerance
        of_errors = f"only the candidate failed on {total.candidate_bad} of {total.pairs} pairs"
        of_errors += f", only the champion on {total.champion_bad}"
        of_outputs = (
            f"outputs differ on {total.disagreeing} of {total.compared} pairs, the budget is {limit:.1%}"
        )
        of_latency = (
            f"only the candidate (divided by {slack:g}) was over {slowest} on {only} of {total.timed}"
        )
        of_latency += f" pairs, only the champion on {not_only}"
        logs = {
            "errors": (float(self._worse_errors.log_e), f"errors: {of_errors}"),
            "disagreement": (float(self._over.log_e), f"disagreement: {of_outputs}"),
            "latency": (self._log_slower(), f"latency: {of_latency}"),
        }
        ranked = sorted(logs, key=lambda name: logs[name][0] + math.log(WEIGHTS[name]), reverse=True)
        observed = self._observed(slowest)
        findings: list[Finding] = []
        for name in ranked:
            log_e, reason = logs[name]
            needed = 1 / (self._policy.alpha * WEIGHTS[name])
            failed = name == ranked[0] or log_e >= math.log(needed)
            findings.append(
                replace(
                    observed[name],
                    outcome=Outcome.FAIL if failed else Outcome.INCONCLUSIVE,
                    reason=f"{reason}, E = {e_text(log_e)}",
                    evidence=capped_e(log_e),
                    needed=needed,
                )
            )
        bound = 1 / self._policy.alpha
        reason = f"{findings[0].reason}; together E = {e_text(log_harm)} passed 1/alpha = {bound:g}"
        return Verdict(Outcome.FAIL, reason, tuple(findings), would_change=self._rejected_change(ranked[0]))

    def _rejected_change(self, metric: str) -> str:
        limits = {
            "errors": "as many pairs on which only the champion failed",
            "disagreement": f"at most {self._policy.max_disagreement:.1%} of the outputs differing",
            "latency": f"times within {self._tolerance:.0%} of the champion's (canary.latency.tolerance)",
        }
        return f"nothing that comes later, for this version; with {limits[metric]} it would have gone on"

    def _open_change(self, open_questions: list[str], log_harm: float) -> str:
        """What passes an undecided shadow, and what would reject it."""
        growth = self._worse_errors.expected_growth(1.0, 0.0)
        needed = self._log_reject - math.log(WEIGHTS["errors"])
        fatal = units_to_go(self._worse_errors.wealth.log_bets, growth, needed)
        text = f"to pass: {'; '.join(open_questions)}. To reject: E of harm from {e_text(log_harm)} to "
        text += f"{1 / self._policy.alpha:g}"
        return (
            text if fatal is None else f"{text}, as after about {math.ceil(fatal)} pairs that only it fails"
        )

    def _observed(self, slowest: str = "") -> dict[str, Finding]:
        """The numbers of each family's finding: rates, bounds of their difference, pairs."""
        total = self._total
        only, not_only = total.slower.get(slowest, (0, 0))
        errors_low, errors_high = _difference(total.candidate_bad, total.champion_bad, total.pairs)
        slower_low, slower_high = _difference(only, not_only, total.timed)
        return {
            "errors": Finding(
                "errors",
                Outcome.INCONCLUSIVE,
                "",
                candidate=(total.candidate_bad + total.both_bad) / max(total.pairs, 1),
                champion=(total.champion_bad + total.both_bad) / max(total.pairs, 1),
                low=errors_low,
                high=errors_high,
                units=total.pairs,
            ),
            "disagreement": Finding(
                "disagreement",
                Outcome.INCONCLUSIVE,
                "",
                candidate=total.disagreeing / max(total.compared, 1),
                units=total.compared,
            ),
            "latency": Finding(
                "latency",
                Outcome.INCONCLUSIVE,
                "",
                low=slower_low if total.timed else None,
                high=slower_high if total.timed else None,
                units=total.timed,
            ),
        }

    def _errors_finding(self) -> Finding:
        total, log_e = self._total, float(self._fine_errors.log_e)
        text = f"errors: only candidate {total.candidate_bad}, only champion {total.champion_bad}"
        text += f" of {total.pairs} pairs"
        done = log_e >= _LOG_PASS
        tail = (
            f"excess over {self._margin:.1%} excluded" if done else lacking_text(self._errors_eta(), "pairs")
        )
        return replace(
            self._observed()["errors"],
            outcome=Outcome.PASS if done else Outcome.INCONCLUSIVE,
            reason=f"{text}, E = {e_text(log_e)} of {PASS_AT:g}, {tail}",
            evidence=capped_e(log_e),
            needed=PASS_AT,
        )

    def _disagreement_finding(self) -> Finding:
        total, log_e = self._total, float(self._within.log_e)
        done = log_e >= _LOG_PASS
        tail = (
            f"over {self._policy.max_disagreement:.1%} excluded"
            if done
            else lacking_text(self._disagreement_eta(), "pairs")
        )
        reason = f"disagreement on {total.disagreeing} of {total.compared} pairs"
        reason += f", E = {e_text(log_e)} of {PASS_AT:g}, {tail}"
        return replace(
            self._observed()["disagreement"],
            outcome=Outcome.PASS if done else Outcome.INCONCLUSIVE,
            reason=reason,
            evidence=capped_e(log_e),
            needed=PASS_AT,
        )

    def _errors_eta(self) -> float | None:
        total = self._total
        growth = self._fine_errors.expected_growth(
            total.candidate_bad / (total.pairs + 20), total.champion_bad / (total.pairs + 20)
        )
        return units_to_go(self._fine_errors.wealth.log_bets, growth, _LOG_PASS)

    def _disagreement_eta(self) -> float | None:
        total = self._total
        rate = (total.disagreeing + 10 * self._policy.max_disagreement) / (total.compared + 20)
        growth = self._within.expected_growth(rate)
        pairs = units_to_go(self._within.wealth.log_bets, growth, _LOG_PASS)
        return None if pairs is None else pairs * max(total.pairs, 1) / max(total.compared, 1)


def _difference(candidate_only: int, champion_only: int, pairs: int) -> tuple[float, float]:
    """Asymptotic 95% bounds of P(only the candidate) - P(only the champion), looked at once."""
    size = max(pairs, 1)
    difference = (candidate_only - champion_only) / size
    spread = (candidate_only + champion_only + 1) / (size + 1) - difference**2
    half = 1.96 * math.sqrt(max(spread, 0.0) / size)
    return max(difference - half, -1.0), min(difference + half, 1.0)
