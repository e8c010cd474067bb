"""The e-processes beside exact computation: every sequence enumerated, closed forms, plain arithmetic.

Nothing here is simulated, and nothing is shared with `evals.sequential` but its public functions.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import betainc, betaln

from configs.policy import Canary, Latency, LatencyBudget, Window
from evals.canary import CanaryJudge
from evals.evidence import errors_fine, errors_worse, latency_fine, latency_worse, quality_fine, quality_worse
from evals.looks import LatencyThresholds, LookStatistics
from evals.sequential import BINARY, FloatArray, OneSample, Paired, SampleRatio, TwoSample, times
from evals.units import UnitTracker

from .streams import group, requests

POLICY = Canary(latency=Latency(tolerance=0.1, margin=0.2, budget_ms=LatencyBudget(p95=50)))

# Every sequence ----------------------------------------------------------------------------------

LOOKS = 6
OUTCOMES = tuple(itertools.product((True, False), (0, 1)))
"""One unit a look: whose it is, and whether it is bad."""
SEQUENCES = np.array(list(itertools.product(range(4), repeat=LOOKS)))
PIS = (0.05, 0.05, 0.25, 0.5, 0.95, 1e-6)
CHAMPION_MEANS = (0.01, 0.3, 0.02, 0.9, 0.1, 0.0)
"""They drift as they like: the tests must bear it."""


def play_all(process: TwoSample, *, ratio: float, excess: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Chance of every sequence on the null's boundary, its last e-value, and its greatest one."""
    chance, greatest = np.ones(len(SEQUENCES)), np.ones(len(SEQUENCES))
    for look, (pi, mean_a) in enumerate(zip(PIS, CHAMPION_MEANS, strict=True)):
        mean_b = ratio * mean_a + excess
        candidate, champion = np.zeros((len(SEQUENCES), 2)), np.zeros((len(SEQUENCES), 2))
        for number, (is_candidate, bad) in enumerate(OUTCOMES):
            here = SEQUENCES[:, look] == number
            mean = mean_b if is_candidate else mean_a
            chance[here] *= (pi if is_candidate else 1 - pi) * (mean if bad else 1 - mean)
            (candidate if is_candidate else champion)[here, bad] = 1
        each = (*process.log_e.shape, 2)  # latency has a last axis of one quantile
        process.update(candidate.reshape(each), champion.reshape(each), pi)
        process.wealth.stake(0.3)
        greatest = np.maximum(greatest, np.exp(process.log_e.reshape(-1)))
    return chance, np.exp(process.log_e.reshape(-1)), greatest


@pytest.mark.parametrize("worse", [True, False])
@pytest.mark.parametrize(("ratio", "excess"), [(1.0, 0.0), (1.0, 0.02), (0.8, 0.1)])
@pytest.mark.parametrize("guess", [1e-4, 0.05, 0.7])
def test_over_all_sequences_on_the_boundary_the_expected_evidence_is_one(
    worse: bool, ratio: float, excess: float, guess: float
) -> None:
    """With plug-ins that learn, shares that rise, means that drift, and a reserve that is staked."""
    process = TwoSample(
        times(1.5, 4, 20) if worse else times(0.7, 0.1),
        [1, 2, 3] if worse else [1, 2],
        worse=worse,
        prior_mean=guess,
        prior_units=2,
        memory=3,
        ratio=ratio,
        excess=excess,
        shape=(len(SEQUENCES),),
        levels=BINARY,
        reserve=0.2 if worse else 0.0,
    )
    chance, last, greatest = play_all(process, ratio=ratio, excess=excess)
    assert chance.sum() == pytest.approx(1, abs=1e-12)
    assert chance @ last == pytest.approx(1, abs=1e-12)
    for bound in (1.2, 2, 5, 20, 100):
        assert chance @ (greatest >= bound) <= 1 / bound


SHAPE = (len(SEQUENCES),)
PROCESSES: dict[str, tuple[Callable[[], TwoSample], float]] = {
    "errors, harm": (lambda: errors_worse(POLICY, shape=SHAPE), 0.0),
    "errors, proof": (lambda: errors_fine(POLICY, shape=SHAPE), POLICY.errors.margin),
    "latency, harm": (lambda: latency_worse(["p95"], shape=SHAPE), 0.0),
    "latency, proof": (lambda: latency_fine(["p95"], shape=SHAPE), 0.0),
    "quality, harm": (lambda: quality_worse(POLICY, shape=SHAPE), 0.0),
}


@pytest.mark.parametrize("name", list(PROCESSES))
def test_the_judges_own_processes_expect_one_on_their_boundary(name: str) -> None:
    make, excess = PROCESSES[name]
    process = make()
    process.levels = BINARY
    chance, last, _ = play_all(process, ratio=1.0, excess=excess)
    assert chance @ last == pytest.approx(1, abs=1e-12)


def test_every_way_to_report_expects_one_of_the_sample_ratio() -> None:
    total = 0.0
    for arms in itertools.product((0, 1), repeat=8):
        process, chance = SampleRatio(), 1.0
        for arm, pi in zip(arms, (0.05, 0.05, 0.05, 0.25, 0.25, 0.5, 0.95, 1e-6), strict=True):
            process.update(arm, 1 - arm, pi)
            process.wealth.stake(0.2)
            chance *= pi if arm else 1 - pi
        total += chance * math.exp(process.log_e)
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5])
def test_all_paired_sequences_expect_one(p: float) -> None:
    """Under the null a discordant pair is a fair coin, however often pairs are discordant."""
    total, reached = 0.0, 0.0
    for kinds in itertools.product(range(3), repeat=6):
        process, chance, greatest = Paired(worse=True), 1.0, 1.0
        for kind in kinds:
            process.update(*(int(kind == other) for other in range(3)))
            chance *= (p, p, 1 - 2 * p)[kind]
            greatest = max(greatest, math.exp(float(process.log_e)))
        total += chance * math.exp(float(process.log_e))
        reached += chance * (greatest >= 5)
    assert total == pytest.approx(1, abs=1e-12)
    assert reached <= 1 / 5


# Dynamic programming and closed forms ------------------------------------------------------------


@pytest.mark.parametrize(("null", "factors"), [(0.01, (1.5, 3, 10)), (0.05, (1.5, 2, 4, 10)), (0.3, (2.0,))])
def test_a_fixed_budget_is_falsely_found_broken_exactly_as_often_as_it_may_be(
    null: float, factors: tuple[float, ...]
) -> None:
    """The exact chance that E ever reaches 20, from all binary sequences of 600 units at the budget."""
    units, bound = 600, math.log(20)
    counts = np.array([(n - k, k) for n in range(units + 1) for k in range(n + 1)], dtype=np.float64)
    process = OneSample(
        np.full(len(counts), null), times(*factors), [1] * len(factors), worse=True, levels=BINARY
    )
    log_e = process.log_e_with(counts)
    open_at, reached, expected, row = np.array([1.0]), 0.0, 0.0, 1
    for n in range(1, units + 1):
        grown = np.zeros(n + 1)
        grown[:-1] += open_at * (1 - null)
        grown[1:] += open_at * null
        here = log_e[row : row + n + 1]
        row += n + 1
        stopped = (here >= bound) & (grown > 0)
        reached += float(grown[stopped].sum())
        expected += float(grown[stopped] @ np.exp(here[stopped]))
        open_at = np.where(stopped, 0.0, grown)
    still = open_at > 0
    expected += float(open_at[still] @ np.exp(log_e[-units - 1 :][still]))
    assert expected == pytest.approx(1, abs=1e-9)  # optional stopping takes nothing and gives nothing
    assert 0.2 / 20 < reached <= 1 / 20


def test_a_fine_mixture_is_the_one_sided_beta_binomial_mixture() -> None:
    """Robbins' mixture in closed form (Howard et al., arXiv:1810.08240, section 3): an integral over q."""
    null, a, b = 0.1, 0.5, 4.5
    edges = np.linspace(null, 1, 20_001)
    middle = (edges[1:] + edges[:-1]) / 2
    weights = np.diff(betainc(a, b, edges))
    kept = middle < 0.95 * (1 - null) + null
    process = OneSample(null, lambda boundary: middle[kept], list(weights[kept]), worse=True, levels=BINARY)
    for good, bad in ((20, 0), (90, 10), (70, 30), (400, 80)):
        tail = 1 - betainc(a + bad, b + good, null)
        closed = betaln(a + bad, b + good) - betaln(a, b) + math.log(tail / (1 - betainc(a, b, null)))
        closed -= bad * math.log(null) + good * math.log(1 - null)
        assert float(process.log_e_with([good, bad])) == pytest.approx(closed, abs=2e-3)


def plain_two_sample(
    looks: list[tuple[float, list[int], list[int]]], factors: tuple[float, ...], prior_mean: float
) -> float:
    """E of the error process, unit by unit in plain floats, from the formulas in the design."""
    wealth = [1 / len(factors)] * len(factors)
    units, bad_sum = 100.0, 100.0 * prior_mean
    for pi, candidate, champion in looks:
        rate = bad_sum / units
        for index, factor in enumerate(factors):
            tau = min(rate * factor, 0.95)
            centre = pi * tau + (1 - pi) * rate
            stake = (tau - centre) / (centre * (1 - centre))
            odds = pi / (1 - pi)
            stake = min(stake, 0.95 / centre, 0.95 / (odds * (1 - centre)))
            for bad in candidate:
                wealth[index] *= 1 + stake * (bad - centre)
            for bad in champion:
                wealth[index] *= 1 - stake * odds * (bad - centre)
        units, bad_sum = units + len(champion), bad_sum + sum(champion)
    return sum(wealth)


@settings(max_examples=60, deadline=None)
@given(
    looks=st.lists(
        st.tuples(
            st.sampled_from([0.01, 0.05, 0.25, 0.5, 0.95]),
            st.lists(st.integers(0, 1), max_size=8),
            st.lists(st.integers(0, 1), max_size=8),
        ),
        max_size=5,
    ),
    prior_mean=st.sampled_from([0.01, 0.1, 0.4]),
)
def test_counts_say_what_plain_arithmetic_says_unit_by_unit(
    looks: list[tuple[float, list[int], list[int]]], prior_mean: float
) -> None:
    """Hence the order of the units within a look does not matter either."""
    process = TwoSample(times(1.5, 3, 10), [1, 1, 1], worse=True, prior_mean=prior_mean, levels=BINARY)
    for pi, candidate, champion in looks:
        ours, theirs = ([len(arm) - sum(arm), sum(arm)] for arm in (candidate, champion))
        process.update(ours, theirs, pi)
    plain = plain_two_sample(looks, (1.5, 3, 10), prior_mean)
    assert float(process.log_e) == pytest.approx(math.log(plain), abs=1e-9)


# Properties of the whole engine ------------------------------------------------------------------

rates = st.floats(0.0, 1.0)


@settings(max_examples=80, deadline=None)
@given(base=st.floats(0.001, 0.9), lower=rates, more=rates, pi=st.sampled_from([1e-6, 0.05, 0.5, 0.95]))
@pytest.mark.parametrize("kind", ["errors", "latency", "quality"])
def test_more_harm_never_gives_the_judge_less_expected_evidence(
    kind: str, base: float, lower: float, more: float, pi: float
) -> None:
    low, high = sorted((lower, more))
    if kind == "errors":
        worse, fine = errors_worse(POLICY, prior_mean=base), errors_fine(POLICY, prior_mean=base)
    elif kind == "quality":
        worse, fine = quality_worse(POLICY, prior_mean=base), quality_fine(0.1, prior_mean=base)
    else:
        worse, fine = latency_worse(["p90", "p99"]), latency_fine(["p90", "p99"])
    shape = (2,) if kind == "latency" else ()
    of_low, of_high, champion = (np.full(shape, mean) for mean in (low, high, base))
    harm = worse.expected_growth(of_high, champion, pi) - worse.expected_growth(of_low, champion, pi)
    proof = fine.expected_growth(of_high, champion, pi) - fine.expected_growth(of_low, champion, pi)
    assert np.all(harm >= -1e-9)
    assert np.all(proof <= 1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), by=st.sampled_from(["user", "request"]))
def test_the_order_of_requests_within_a_look_does_not_matter(seed: int, by: str) -> None:
    rng = np.random.default_rng(seed)
    policy = POLICY.model_copy(update={"settle_s": 0, "window": Window(requests=3, seconds=20)})
    thresholds = LatencyThresholds({"p50": 1.0, "p95": 2.0})
    share, user, bucket = np.repeat([0.05, 0.25], 30), rng.integers(0, 12, 60), rng.random(12)
    frame = requests([{}] * 60).assign(
        time=np.arange(60.0),
        user=np.where(rng.random(60) < 0.9, user.astype(str), ""),
        share=share,
        candidate=bucket[user] < share,
        failed=rng.random(60) < 0.2,
        service_ms=rng.lognormal(0, 0.5, 60),
    )
    seen = [
        UnitTracker(policy, "user" if by == "user" else "request", thresholds).observe(part, 100.0)
        for part in (frame, frame.sample(frac=1, random_state=seed))
    ]
    assert seen[0] == seen[1]


sizes = st.sampled_from([0, 1, 7, 10**3, 10**9])


@settings(max_examples=60, deadline=None)
@given(
    pi=st.sampled_from([1e-6, 0.05, 0.5, 1 - 1e-6]),
    ours=st.tuples(sizes, sizes),
    theirs=st.tuples(sizes, sizes),
)
@example(pi=1e-6, ours=(0, 0), theirs=(0, 0))
@example(pi=1e-6, ours=(0, 10**9), theirs=(0, 10**9))
@example(pi=0.95, ours=(0, 10**9), theirs=(10**9, 0))
@example(pi=0.05, ours=(10**9, 0), theirs=(0, 0))
def test_nothing_overflows_whatever_is_counted(
    pi: float, ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    """No requests, errors only, a billion of them, a share of a millionth: finite, and says so in JSON."""
    thresholds = LatencyThresholds({"p50": 1.0, "p99.9": 9.0})
    judge = CanaryJudge(POLICY, thresholds)
    metrics = ("errors", "tolerance/p50", "tolerance/p99.9", "margin/p50", "margin/p99.9", "budget/p95")
    counted = group(pi, dict.fromkeys(metrics, ours), dict.fromkeys(metrics, theirs))
    for _ in range(2):
        look = judge.look(LookStatistics((counted,), sum(ours), sum(theirs)), step=0, seconds_at_step=1.0)
        assert all(math.isfinite(value) for value in look.numbers.values())
        json.dumps(look.as_dict(), allow_nan=False)
