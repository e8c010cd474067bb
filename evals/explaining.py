"""The canary's questions in words, and what would change an answer.

Every verdict says what would change it: what is missing for a promotion, what would roll the version
back at once, which limit of the policy the evidence went beyond. For people; nothing is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from configs.policy import Canary
from evals.contrast import Contrast
from evals.evidence import Question
from evals.looks import ERRORS, QUALITY, budget_limits, gauge_of, slacks_of, tail_of
from evals.wording import e_text, lacking_text


def spoken(metric: str) -> str:
    """'margin/p95' as 'latency p95', 'margin/ttft_ms/p95' as 'ttft_ms p95', 'budget/p95' as 'budget p95'."""
    kind, _, name = metric.partition("/")
    words = name.replace("/", " ")
    if kind == "margin":
        return words if gauge_of(name) else f"latency {words}"
    return f"{kind} {words}".rstrip()


def named(policy: Canary, metric: str) -> str:
    """The question in words."""
    if metric == ERRORS:
        return ERRORS
    if metric == QUALITY:
        return "badness by labels"
    kind, _, name = metric.partition("/")
    gauge, quantile = gauge_of(name), name.rpartition("/")[2]
    if kind == "budget":
        limit = f"{budget_limits(policy)[name]:g}"
        of = f"{quantile} budget of {limit} ms" if not gauge else f"{gauge} {quantile} budget of {limit}"
        return f"requests over the {of}"
    about = slacks_of(policy, gauge)
    slack = about.tolerance if kind == "tolerance" else about.margin
    more = f"with more {gauge}" if gauge else "slower"
    divided = f"candidate's{'' if gauge else ' time'} divided by {1 + slack:g}"
    return f"requests {more} than the champion's past {quantile} ({divided})"


def lacks(policy: Canary, question: Question) -> str:
    """What one proof of no harm still needs."""
    needed = 1 / policy.false_promote
    text = f"{spoken(question.metric)} has E = {e_text(question.log_e)} of {needed:g}"
    return f"{text}, {question.note or lacking_text(question.eta, 'candidate units')}"


# -- what would change it ----------------------------------------------------------------------------


def of_rollback(policy: Canary, harm: Question, contrast: Contrast) -> str:
    """A rollback stands; the limit of the policy that the evidence went beyond."""
    seen = "" if contrast.difference is None else f" (seen: {100 * contrast.difference:+.2g} points)"
    return (
        f"nothing that comes later, for this version; with {_limit(policy, harm.metric)}{seen} "
        "it would have gone on"
    )


def _limit(policy: Canary, metric: str) -> str:
    kind, _, name = metric.partition("/")
    if metric == ERRORS:
        return f"errors at most {100 * policy.errors.tolerance:g} points above the champion's"
    if metric == QUALITY:
        allowed = policy.quality.tolerance if policy.quality else 0.0
        return f"scores at most {allowed:g} below the champion's"
    if kind == "budget":
        return (
            f"at most {tail_of(name):.3g} of its requests over the budget, or a champion that breaks it too"
        )
    slack = slacks_of(policy, gauge_of(name)).tolerance
    return f"its {spoken(f'margin/{name}')} at most {slack:.0%} above the champion's"


def of_waiting(
    policy: Canary,
    open_questions: Sequence[Question],
    waiting: str | None,
    log_harm: float,
    fatal: float | None,
) -> str:
    """What an undecided canary still needs, and what would roll it back (`fatal` failures in a row)."""
    asks = [lacks(policy, question) for question in open_questions] + ([waiting] if waiting else [])
    back = f"E of harm from {e_text(log_harm)} to {1 / policy.false_rollback:g}"
    if fatal is not None:
        back += f", as after about {math.ceil(fatal)} candidate units in a row that fail"
    return f"to promote: {'; '.join(asks)}. To roll back: {back}"


def of_promotion(policy: Canary, required: Sequence[Question]) -> str:
    """A PASS ends the canary; how narrow it was."""
    weakest = min(required, key=lambda question: question.log_e)
    bound = 1 / policy.false_promote
    return (
        f"E under {bound:g} on any of its proofs would have held it; the weakest is "
        f"{spoken(weakest.metric)} with {e_text(weakest.log_e)}. Later harm is the watch's to find"
    )


def of_missing(names: Sequence[str]) -> str:
    """Thresholds are fixed when the canary begins, so a release that lacks one needs to begin anew."""
    return (
        f"a new release after the champion has served more requests, or canary quantiles without "
        f"{', '.join(names)}"
    )


LOST_TELEMETRY = "a new release with complete records of both versions; this one's stay incomplete"
