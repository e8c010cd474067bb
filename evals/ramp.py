"""The next share of a ramp, and how long each share is expected to take.

A step may cost at worst its share of the traffic times the upper bound of the candidate's excess
errors for as long as it bakes. With an error budget in the policy the next share is the largest
of the policy's steps that fits; the tighter the evidence, the larger the step. Without one the
ramp goes step by step. Only shares of the policy are ever granted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.policy import Canary
from evals.evidence import FAMILY_WEIGHTS, errors_fine, errors_worse
from evals.sequential import units_to_go


@dataclass(frozen=True, slots=True)
class NextStep:
    """Which step to grant next (None: stay), what it may cost in excess errors, and why."""

    step: int | None
    reason: str
    harm: float | None = None


def grantable_bp(share_percent: float, step_bp: int) -> int:
    """A share in basis points on the platform's grid: rounded down, but never to nothing.

    More than the policy says would be more risk than the operator accepted; nothing at all would be
    a ramp that never begins.
    """
    wanted_bp = round(share_percent * 100)
    return max(wanted_bp // step_bp, 1) * step_bp if wanted_bp > 0 else 0


def expected_harm(policy: Canary, step: int, *, excess_high: float, requests_per_s: float) -> float:
    """Excess errors of one bake at this step, at worst: bound x share x traffic x time."""
    last = step == len(policy.steps) - 1
    seconds = max(policy.soak_s if last else policy.bake_s, policy.look_every_s)
    return max(excess_high, 0.0) * policy.steps[step] / 100 * requests_per_s * seconds


def next_step(policy: Canary, step: int, *, excess_high: float | None, requests_per_s: float) -> NextStep:
    """The step after `step` (-1: the ramp has not begun), once the judge has let the ramp advance.

    `excess_high` is the upper bound of candidate minus champion error rate (`Look.numbers`,
    difference/errors/high), None without evidence: then the first step is granted, for without
    it there never will be any, and no other is.
    """
    last = len(policy.steps) - 1
    if step >= last:
        return NextStep(None, "the last step is reached")
    following = step + 1
    if policy.error_budget is None or step < 0:
        return NextStep(following, f"the policy's next step: {policy.steps[following]:g}%")
    if excess_high is None:
        return NextStep(None, "no bound on the candidate's excess errors yet")
    harms = {
        index: expected_harm(policy, index, excess_high=excess_high, requests_per_s=requests_per_s)
        for index in range(following, last + 1)
    }
    fitting = [index for index, harm in harms.items() if harm <= policy.error_budget]
    worst = f"excess errors are under {excess_high:.2%}"
    if not fitting:
        harm = harms[following]
        reason = f"{worst}: {policy.steps[following]:g}% could cost {harm:.0f} requests"
        return NextStep(
            None, f"{reason}, the budget is {policy.error_budget:g}; more units tighten the bound", harm
        )
    chosen = max(fitting)
    reason = f"{worst}: {policy.steps[chosen]:g}% costs {harms[chosen]:.0f} requests at most"
    return NextStep(chosen, f"{reason}, the budget is {policy.error_budget:g}", harms[chosen])


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What a step is expected to take: units are the candidate's, None means never at this base rate.

    `units_to_catch` until a candidate with `times` the champion's errors is rolled back,
    `units_to_clear` until an equally good one has shown its errors to be within the margin;
    `seconds_*` the same in time, not less than the step's bake.
    """

    share: float
    times: float
    units_to_catch: float | None
    units_to_clear: float | None
    seconds_to_catch: float | None
    seconds_to_clear: float | None


def plan(
    policy: Canary, *, error_rate: float, units_per_s: float, times: float = 2.0
) -> tuple[StepPlan, ...]:
    """Each step on its own, from n = (ln(1/alpha) + ln(1/w)) / KL with the champion's past error rate."""
    steps: list[StepPlan] = []
    catch_at = math.log(1 / policy.false_rollback) - math.log(FAMILY_WEIGHTS["errors"])
    clear_at = math.log(1 / policy.false_promote)
    for share in policy.steps:
        pi = share / 100
        worse, fine = errors_worse(policy, prior_mean=error_rate), errors_fine(policy, prior_mean=error_rate)
        growth = worse.expected_growth(min(times * error_rate, 1.0), error_rate, pi)
        catch = units_to_go(worse.wealth.log_bets, growth, catch_at)
        clear = units_to_go(fine.wealth.log_bets, fine.expected_growth(error_rate, error_rate, pi), clear_at)
        pace = pi * units_per_s
        steps.append(
            StepPlan(
                share,
                times,
                catch,
                clear,
                None if catch is None else catch / pace,
                None if clear is None else max(clear / pace, policy.bake_s),
            )
        )
    return tuple(steps)


def plan_words(step: StepPlan) -> str:
    """One step's plan for people."""
    catch = "never" if step.seconds_to_catch is None else f"in {_time_words(step.seconds_to_catch)}"
    clear = "never" if step.seconds_to_clear is None else f"in {_time_words(step.seconds_to_clear)}"
    return f"{step.share:g}%: {step.times:g} times the errors caught {catch}, no more errors shown {clear}"


def _time_words(seconds: float) -> str:
    """'about 40 s', 'about 12 min', 'about 5 h', 'about 9 days'."""
    for size, unit, most in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800)):
        if seconds < most:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds / 86_400:.0f} days"
