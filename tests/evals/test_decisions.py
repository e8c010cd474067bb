"""Decisions compared byte for byte: what the canonical form keeps, and what a replay notices."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.policy import Canary, Latency, Shadow
from evals.canary import CanaryJudge
from evals.decisions import (
    Recorded,
    canonical,
    decide,
    digest,
    pair_summary,
    replay_canary,
    replay_shadow,
    unresolved,
)
from evals.looks import StoredLook
from evals.shadow import PairCounts, ShadowJudge
from evals.verdict import Outcome, Verdict

from .streams import drawn_look
from .test_canary import GOOD, POLICY, SAME, THRESHOLDS

BUDGETED = POLICY.model_copy(update={"steps": (5, 25, 50), "error_budget": 40.0})
SHADOW = Shadow(score_tolerance=0.05, min_pairs=100)


def played(policy: Canary = BUDGETED, looks: int = 12) -> list[Recorded]:
    """A canary's looks as the journal has them, its beginning first."""
    rng, judge = np.random.default_rng(11), CanaryJudge(policy, THRESHOLDS)
    stored = [Recorded(0, 0.0, {"thresholds": THRESHOLDS.as_dict()})]
    step, since, requests = 0, 0, 0
    for number in range(1, looks + 1):
        pi = policy.steps[step] / 100
        statistics = drawn_look(rng, pi=pi, units=2000, candidate=GOOD, champion=SAME)
        requests += 2000
        look = StoredLook(statistics, step, 5.0 * (number - since), requests_at_step=requests)
        decision = decide(policy, judge, look)
        stats = json.loads(json.dumps({**look.as_dict(), "decided": decision.summary}))
        stored.append(Recorded(number, float(number), stats))
        if decision.following is not None and decision.following.step is not None:
            step, since, requests = decision.following.step, number, 0
    return stored


def with_stats(looks: list[Recorded], at: int, **changes: Any) -> list[Recorded]:
    return [replace(one, stats={**one.stats, **changes}) if i == at else one for i, one in enumerate(looks)]


def test_a_canary_with_an_error_budget_comes_out_again_with_its_steps() -> None:
    looks = played()
    assert {look.stats["step"] for look in looks[1:]} > {0}
    made = replay_canary(BUDGETED, looks)
    assert (made.looks, made.checked, made.difference) == (12, 12, None)
    concluded = {**made.candidates[0].as_dict(), "time": 9.0, "engine": "x"}
    assert made.against(concluded) is None
    assert made.against(None) is None
    held = unresolved(made.candidates[0], 12)
    assert (held.outcome, made.against(held.as_dict())) == (Outcome.INCONCLUSIVE, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds_at_step": 0.0}, "advance"),
        ({"requests_at_step": 10**9}, ""),
        ({"stuck": [50, 0]}, "advance"),
        ({"step": 2}, "taken at step 3"),
        ({"decided": {"verdict": "PASS", "advance": "PASS", "step": 2, "digest": "0" * 32}}, "PASS"),
    ],
)
def test_any_number_that_decided_is_noticed_at_its_look(changes: dict[str, Any], words: str) -> None:
    looks = played()
    # A look at which the ramp was let go: all of these numbers had a say.
    at = next(i for i, look in enumerate(looks) if look.stats.get("decided", {}).get("step") is not None)
    found = replay_canary(BUDGETED, with_stats(looks, at, **changes)).difference
    assert found is not None
    assert found.look == looks[at].number
    assert words in found.stored


def test_a_missing_look_and_a_missing_beginning_are_noticed() -> None:
    looks = played()
    found = replay_canary(BUDGETED, looks[:3] + looks[4:]).difference
    assert found is not None
    assert found.look == 4
    found = replay_canary(BUDGETED, looks[1:]).difference
    assert found is not None
    assert "no look has the thresholds" in found.recomputed
    assert replay_canary(BUDGETED, []).candidates == ()
    assert replay_canary(BUDGETED, []).against(Verdict(Outcome.PASS, "trust me").as_dict()) is not None


def test_looks_of_before_decisions_were_kept_are_judged_and_not_compared() -> None:
    old = [replace(one, stats={k: v for k, v in one.stats.items() if k != "decided"}) for one in played()]
    made = replay_canary(BUDGETED, old)
    assert (made.looks, made.checked, made.difference) == (12, 0, None)
    verdict = {key: value for key, value in made.candidates[0].as_dict().items() if key != "would_change"}
    assert made.against(verdict) is None, "a verdict stored before a key existed lacks it"


def test_a_canary_that_began_anew_is_judged_in_parts() -> None:
    again = [replace(one, number=one.number + 13) for one in played()]
    made = replay_canary(BUDGETED, [*played(), *again])
    assert (made.looks, made.checked, made.difference) == (24, 24, None)


def shadowed(champion: str, first: int) -> list[Recorded]:
    judge, looks = ShadowJudge(SHADOW, 0.05, Latency()), []
    for number in range(first, first + 3):
        counts = PairCounts(both_fine=40, disagreeing=1)
        stats = {
            "counts": counts.as_dict(),
            "champion": champion,
            "decided": pair_summary(judge.look(counts)),
        }
        looks.append(Recorded(number, float(number), stats))
    return looks


def test_a_shadow_comes_out_again_by_champion_and_a_changed_pair_is_noticed() -> None:
    looks = [*shadowed("1", 1), *shadowed("2", 4)]
    made = replay_shadow(SHADOW, 0.05, Latency(), looks)
    assert (made.looks, made.checked, made.difference) == (6, 6, None)
    assert {verdict.outcome for verdict in made.candidates} == {Outcome.PASS, Outcome.INCONCLUSIVE}
    edited = with_stats(looks, 4, counts=PairCounts(both_fine=39, candidate_bad=1).as_dict())
    found = replay_shadow(SHADOW, 0.05, Latency(), edited).difference
    assert found is not None
    assert found.look == 5
    old = [replace(one, stats={"counts": one.stats["counts"]}) for one in looks]
    assert replay_shadow(SHADOW, 0.05, Latency(), old).checked == 0
    off = replay_shadow(Shadow(enabled=False, reason="none"), 0.01, Latency(), ())
    assert off.candidates[0].passed


def test_the_canonical_form_keeps_nine_digits_and_no_order() -> None:
    assert canonical({"b": (1, 2.0), "a": None}) == '{"a":null,"b":[1,2.0]}'
    assert canonical(0.1 + 0.2) == canonical(0.3) == "0.3"
    assert canonical(1.00000001) != canonical(1.0)
    assert canonical(Outcome.PASS) == '"PASS"'
    assert len(digest({})) == 32


@given(st.recursive(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(), st.lists))
def test_the_canonical_form_survives_json(value: Any) -> None:
    assert canonical(json.loads(json.dumps(value))) == canonical(value)
