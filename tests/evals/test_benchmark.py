"""The benchmark measures the judge itself: the same evidence from the same counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.decisions.engines import POLICY, ErrorProcess, errors_worse, pair
from benchmarks.decisions.peers import all_rules
from benchmarks.decisions.periods import race_periods
from benchmarks.decisions.streams import Scenario, constant, doubled_tail, play, play_users, slower
from benchmarks.decisions.times import METHODS, SCENARIOS, race_times
from evals.canary import CanaryJudge
from evals.looks import LatencyThresholds, LookStatistics

from .streams import group

NO_LATENCY = POLICY.model_copy(update={"latency": POLICY.latency.model_copy(update={"quantiles": ()})})


def test_streams_of_the_benchmark_give_the_judges_evidence() -> None:
    judge, process = CanaryJudge(NO_LATENCY, LatencyThresholds({})), ErrorProcess(3)
    scenario = Scenario("bad", constant(0.01), ratio=4.0)
    found = math.nan
    for counts in play(scenario, streams=3, looks=10, per_look=50, rng=np.random.default_rng(1)):
        process.look(counts)
        ours = int(counts.units_b[1] - counts.errors_b[1]), int(counts.errors_b[1])
        theirs = int(counts.units_a[1] - counts.errors_a[1]), int(counts.errors_a[1])
        made = group(counts.pi, {"errors": ours}, {"errors": theirs})
        look = judge.look(LookStatistics((made,)), step=0, seconds_at_step=0)
        found = look.numbers["evidence_log10/rollback/errors"]
    expected = process.log_e[1] / math.log(10)
    assert found == pytest.approx(expected, abs=0.02)
    assert expected > 1


def test_every_peer_notices_gross_harm() -> None:
    rules = all_rules(20, 60, 50)
    seen = {rule.name: np.zeros(20, np.bool_) for rule in rules}
    scenario = Scenario("gross", constant(0.01), ratio=30.0)
    for counts in play(scenario, streams=20, looks=60, per_look=50, rng=np.random.default_rng(2)):
        for rule in rules:
            seen[rule.name] |= rule.look(counts)
    assert all(rejected.all() for rejected in seen.values())


def test_made_up_users_enter_once_a_share_and_never_again_as_candidates() -> None:
    process = errors_worse(POLICY, shape=(2,))
    entered = np.zeros(2)
    shares = set()
    for batches, counts in play_users(streams=2, users=50, looks_per_step=3, rng=np.random.default_rng(3)):
        for batch in batches:
            shares.add(batch.pi)
            entered += batch.candidate.sum(axis=1)
            process.update(batch.candidate, batch.champion, batch.pi)
        assert np.all(counts.errors_b <= counts.units_b)
    assert np.all(entered <= 50)
    assert round(0.2 / 0.95, 12) in shares


def test_latency_shapes() -> None:
    t = np.array([0.5, 1.0, 2.0, 4.0])
    assert slower(1.0)(t)[1] == pytest.approx(0.5)
    tail = doubled_tail(t)
    assert np.all(np.diff(tail) <= 0)
    assert tail[1] == pytest.approx(0.5)
    assert tail[3] > 5 * slower(1.0)(t)[3]
    assert pair(np.array([5]), np.array([2])).tolist() == [[3.0, 2.0]]


def test_of_two_races_on_times_the_mean_misses_the_tail_that_ours_finds() -> None:
    (tail,) = [index for index, one in enumerate(SCENARIOS) if one.name.startswith("tail")]
    rows = race_times(tail, streams=8, rng=np.random.default_rng(4), units=1_000)
    assert [row.method for row in rows] == list(METHODS)
    assert rows[0].share == 1.0
    assert rows[1].share < 0.5


def test_good_versions_judged_from_whole_periods_stay() -> None:
    whole, wanted, coarse = race_periods(streams=6, rng=np.random.default_rng(5))
    assert whole.units.size == wanted.units.size + coarse.units.size == 6
    assert whole.share == 0
