"""The offline gate of a language model: are the candidate's answers good enough, and no worse?

The unit is the prompt. Where a prompt was asked several times its answers are averaged first, so that
repeated sampling narrows an interval only as far as it truly informs (a bootstrap by cluster).
A measure that could not be taken on every answer is an ERROR: the mean of the rest would hide
just what broke it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from configs.generation import LESS_IS_BETTER, Generation, PromptSlice, Scorer
from evals.agreement import Agreement, Preference, order_bias
from evals.intervals import Interval, generator, moment_draws
from evals.moments import Moments
from evals.verdict import Finding, Outcome, Verdict, conclude

FloatArray = NDArray[np.float64]
JUDGE_AGREEMENT = {"judge": "judge agreement", "pairwise": "judge agreement on pairs"}
"""The finding that lets the judge's measures count, by kind of scorer."""


@dataclass(frozen=True, slots=True)
class Measures:
    """One version's answers in numbers.

    `values` by metric, shape (prompts, samples), NaN where the measure raised. `failed` marks the
    answers that never came, same shape.
    """

    values: Mapping[str, FloatArray]
    failed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Contest:
    """Both versions on the same prompts, in the same order, and what is known of the judge.

    `agreement` is the judge's with people on single answers, `pair_agreement` on pairs.
    `champion` is None where there is none yet. `preferences` are the pairwise judgements, one a
    prompt. `slices` by column: each prompt's value, as text. `digest` of the prompts seeds the intervals.
    `why_unmeasured` says, by metric, what the first failing measure said.
    """

    candidate: Measures
    champion: Measures | None
    digest: str
    agreement: Agreement | None = None
    preferences: tuple[Preference, ...] = ()
    slices: Mapping[str, tuple[str, ...]] | None = None
    why_unmeasured: Mapping[str, str] | None = None
    pair_agreement: Agreement | None = None


def evaluate_generation(policy: Generation, contest: Contest) -> Verdict:
    """One finding for the failures, the judge, each threshold, comparison and slice."""
    prompts = int(contest.candidate.failed.shape[0])
    if prompts < policy.min_prompts:
        reason = f"{prompts} prompts; the policy wants at least {policy.min_prompts} (evaluation.min_prompts)"
        finding = Finding("prompts", Outcome.INCONCLUSIVE, reason, units=prompts)
        return Verdict(Outcome.INCONCLUSIVE, reason, (finding,))
    trust = {kind: _judge_finding(kind, policy, contest) for kind in JUDGE_AGREEMENT}
    kinds = {scorer.kind for scorer in policy.scorers}
    blocking = [*_failures(policy, contest), *(one for kind, one in trust.items() if one and kind in kinds)]
    for scorer in policy.scorers:
        if scorer.kind == "pairwise":
            blocking += _pairwise_findings(scorer, policy, contest)
        else:
            blocking += _scorer_findings(scorer, policy, contest)
    # what only the shadow will ask the judge for
    noted = [one for kind, one in trust.items() if one and kind not in kinds]
    for spec in policy.slices:
        for finding in _slice_findings(spec, policy, contest):
            blocks = spec.required or finding.outcome in (Outcome.FAIL, Outcome.ERROR)
            (blocking if blocks else noted).append(finding)
    verdict = conclude(tuple(blocking))
    return replace(verdict, findings=(*blocking, *noted))


def all_refused(prompts: int, said: str) -> Verdict:
    """The candidate called every prompt a bad request: that says how it was asked, not how it answers."""
    reason = (
        f"the candidate refused all of {prompts} prompts as bad requests ({said}). Next: ask as it wants to "
        "be asked (evaluation.tokens_field, temperature, seed, max_tokens; its prompt's variables are the "
        "column prompt_variables)"
    )
    return conclude((Finding("failed", Outcome.ERROR, reason, units=prompts),))


def digest_of(prompts: list[str]) -> str:
    """SHA-256 over the prompts in their order."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()


def _failures(policy: Generation, contest: Contest) -> Iterator[Finding]:
    share = float(contest.candidate.failed.mean())
    count = int(contest.candidate.failed.sum())
    outcome = Outcome.FAIL if share > policy.max_failed else Outcome.PASS
    text = f"{count} of {contest.candidate.failed.size} answers never came; {policy.max_failed:.1%} may fail"
    theirs = None if contest.champion is None else float(contest.champion.failed.mean())
    yield Finding(
        "failed", outcome, text, candidate=share, champion=theirs, units=contest.candidate.failed.size
    )


def _judge_finding(kind: str, policy: Generation, contest: Contest) -> Finding | None:
    """Whether the judge may be believed; without that its measures decide nothing (see `_may_judge`).

    None where there is nothing to check it on.
    """
    judge, name = policy.judge, JUDGE_AGREEMENT[kind]
    labelled = judge and (judge.labelled if kind == "judge" else judge.labelled_pairs)
    if judge is None or labelled is None:
        return None
    things = "answers" if kind == "judge" else "pairs"
    found = contest.agreement if kind == "judge" else contest.pair_agreement
    if found is None:
        said = (contest.why_unmeasured or {}).get(name, "")
        text = f"the judge was not checked on labelled {things}{': ' + said if said else ''}"
        return Finding(name, Outcome.ERROR, text)
    text = (
        f"the judge agrees with people on {found.share:.0%} of {found.answers} labelled {things}, kappa "
        f"{found.kappa:.2f} ({found.low:.2f} to {found.high:.2f})"
    )
    if found.answers < judge.min_labelled:
        outcome, meaning = Outcome.INCONCLUSIVE, f"{judge.min_labelled} are needed before it may gate"
    elif found.low < judge.min_agreement:
        outcome, meaning = Outcome.INCONCLUSIVE, f"below {judge.min_agreement:g}: it may not gate"
    else:
        outcome, meaning = Outcome.PASS, f"at least {judge.min_agreement:g}: it may gate"
    return Finding(
        name,
        outcome,
        f"{text}: {meaning}",
        candidate=found.kappa,
        low=found.low,
        high=found.high,
        units=found.answers,
    )


def _may_judge(kind: str, policy: Generation, contest: Contest) -> bool:
    finding = _judge_finding(kind, policy, contest)
    return finding is not None and finding.outcome is Outcome.PASS


def _scorer_findings(scorer: Scorer, policy: Generation, contest: Contest) -> Iterator[Finding]:
    name = scorer.metric
    problem = _unmeasured(name, "candidate", contest.candidate, contest)
    if problem is None and contest.champion is not None and scorer.margin is not None:
        problem = _unmeasured(name, "champion", contest.champion, contest)
    if problem is not None:
        yield problem
        return
    findings = _measured_findings(scorer, policy, contest)
    if scorer.kind == "judge" and not _may_judge("judge", policy, contest):
        for finding in findings:
            yield replace(
                finding,
                outcome=Outcome.INCONCLUSIVE,
                reason=f"{finding.reason} (not counted: the judge may not gate)",
            )
        return
    yield from findings


def _measured_findings(scorer: Scorer, policy: Generation, contest: Contest) -> Iterator[Finding]:
    name, ours = scorer.metric, _by_prompt(contest.candidate, scorer.metric)
    value = float(ours.mean())
    for bound, is_broken, word in (
        (scorer.min, scorer.min is not None and value < scorer.min, "at least"),
        (scorer.max, scorer.max is not None and value > scorer.max, "at most"),
    ):
        if bound is not None:
            outcome = Outcome.FAIL if is_broken else Outcome.PASS
            text = f"{name} is {value:.4g}, the policy wants {word} {bound:g}"
            yield Finding(name, outcome, text, candidate=value, units=ours.size)
    if contest.champion is not None and scorer.margin is not None:
        theirs = _by_prompt(contest.champion, name)
        yield _compared(
            name,
            ours,
            theirs,
            margin=scorer.margin,
            more_is_better=scorer.kind not in LESS_IS_BETTER,
            confidence=policy.confidence,
            digest=contest.digest,
        )


def _unmeasured(name: str, who: str, measures: Measures, contest: Contest) -> Finding | None:
    """An ERROR where a measure is absent or was not taken on every answer."""
    values = measures.values.get(name)
    said = (contest.why_unmeasured or {}).get(name, "")
    because = f": {said}" if said else ""
    if values is None:
        return Finding(name, Outcome.ERROR, f"{name} was not measured on the {who}'s answers{because}")
    missing = int(np.isnan(values).sum())
    if missing == 0:
        return None
    text = f"{name} could not be measured on {missing} of {values.size} answers of the {who}{because}"
    return Finding(name, Outcome.ERROR, text, units=int(values.size))


def _by_prompt(measures: Measures, name: str, within: NDArray[np.int64] | None = None) -> FloatArray:
    means = measures.values[name].mean(axis=1)
    return means if within is None else means[within]


def _compared(
    name: str,
    ours: FloatArray,
    theirs: FloatArray,
    *,
    margin: float,
    more_is_better: bool,
    confidence: float,
    digest: str,
) -> Finding:
    """The paired comparison of one measure, in the measure's unit."""
    interval = _paired_interval(ours, theirs, confidence=confidence, digest=digest, purpose=name)
    least, most = (-interval.high, -interval.low) if more_is_better else (interval.low, interval.high)
    if most <= margin:
        outcome, meaning = Outcome.PASS, "better" if most < 0 else f"no worse than the margin {margin:g}"
    elif least > margin:
        outcome, meaning = Outcome.FAIL, f"worse by more than the margin {margin:g}"
    else:
        outcome = Outcome.INCONCLUSIVE
        meaning = f"undecided at margin {margin:g}: more prompts or a wider margin"
    mean, other = float(ours.mean()), float(theirs.mean())
    text = f"{name}: candidate {mean:.4g}, champion {other:.4g}, difference {interval.low:+.4g} to "
    text += f"{interval.high:+.4g} ({confidence:.1%} paired, {ours.size} prompts): {meaning}"
    return Finding(name, outcome, text, mean, other, interval.low, interval.high, units=ours.size)


def _paired_interval(
    ours: FloatArray, theirs: FloatArray, *, confidence: float, digest: str, purpose: str
) -> Interval:
    draws = moment_draws(
        Moments(ours[:, None], _itself), Moments(theirs[:, None], _itself), rng=generator(digest, purpose)
    )
    return draws.interval(confidence)


def _itself(means: FloatArray) -> FloatArray:
    """The measure is the mean over prompts."""
    return means[..., 0]


def _pairwise_findings(scorer: Scorer, policy: Generation, contest: Contest) -> Iterator[Finding]:
    """Wins of the candidate against the champion, with the order of showing averaged out and measured."""
    if contest.champion is None:
        return
    name, judge = scorer.metric, policy.judge
    prompts = int(contest.candidate.failed.shape[0])
    if judge is None or len(contest.preferences) < prompts:
        said = (contest.why_unmeasured or {}).get(name, "")
        text = f"{name}: the judge answered for {len(contest.preferences)} of {prompts} pairs"
        yield Finding(name, Outcome.ERROR, f"{text}{': ' + said if said else ''}")
        return
    followed, first = order_bias(list(contest.preferences))
    bias = f"{name}: the winner followed the order in {followed:.0%} of pairs (first place {first:+.2f})"
    biased = followed > judge.max_order_bias
    yield Finding(
        f"{name} order bias",
        Outcome.INCONCLUSIVE if biased else Outcome.PASS,
        f"{bias}; at most {judge.max_order_bias:.0%} is tolerated",
        candidate=followed,
        units=prompts,
    )
    scores = np.asarray([one.score for one in contest.preferences])
    finding = _compared(
        name,
        scores,
        np.full_like(scores, 0.5),
        margin=scorer.margin or 0.0,
        more_is_better=True,
        confidence=policy.confidence,
        digest=contest.digest,
    )
    if biased or not _may_judge("pairwise", policy, contest):
        reason = f"{finding.reason} (not counted: the judge may not gate)"
        finding = replace(finding, outcome=Outcome.INCONCLUSIVE, reason=reason)
    yield finding


def _slice_findings(spec: PromptSlice, policy: Generation, contest: Contest) -> Iterator[Finding]:
    scorer = next(one for one in policy.scorers if one.metric == spec.metric)
    name = f"{spec.metric} where {spec.column}"
    values = (contest.slices or {}).get(spec.column)
    if values is None:
        yield Finding(name, Outcome.ERROR, f"slice by {spec.column}: the prompts have no such column")
        return
    if contest.champion is None:
        return
    for measures, who in ((contest.candidate, "candidate"), (contest.champion, "champion")):
        if _unmeasured(spec.metric, who, measures, contest) is not None:
            return  # said once, for the whole
    groups = {value: np.flatnonzero(np.asarray(values) == value) for value in sorted(set(values))}
    large = {value: rows for value, rows in groups.items() if rows.size >= spec.min_prompts}
    small = [value for value in groups if value not in large]
    if small:
        few = ", ".join(small[:5]) + (", ..." if len(small) > 5 else "")
        reason = f"{name} in {few}: under {spec.min_prompts} prompts, not judged"
        yield Finding(name, Outcome.INCONCLUSIVE, reason, units=sum(groups[one].size for one in small))
    # The intervals' error is shared by all slices.
    confidence = 1 - (1 - policy.confidence) / max(len(large), 1)
    for value, rows in large.items():
        yield _compared(
            f"{name} = {value}",
            _by_prompt(contest.candidate, spec.metric, rows),
            _by_prompt(contest.champion, spec.metric, rows),
            margin=spec.margin,
            more_is_better=scorer.kind not in LESS_IS_BETTER,
            confidence=confidence,
            digest=contest.digest,
        )
