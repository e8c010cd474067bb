"""Does a judge agree with people? Cohen's kappa with its interval, and the order's part in a pairwise win.

A judge whose agreement on labelled answers is not shown may not gate: its PASS would be no evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.intervals import RESAMPLES, generator

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two raters on the same answers (or pairs of them), both 0 or 1.

    `kappa` (Cohen 1960) is the agreement beyond what their own rates of 1 would give by chance;
    `low` and `high` bound it (bootstrap over answers); `share` is the plain share of equal answers.
    """

    kappa: float
    low: float
    high: float
    share: float
    answers: int


def agreement(judged: NDArray[np.int64], labels: NDArray[np.int64], *, confidence: float) -> Agreement:
    """Agreement of a judge with labels, both of shape (n,) with values 0 and 1, n >= 1."""
    counts = np.bincount(2 * judged + labels, minlength=4).astype(np.float64)
    rng = generator(repr((judged.tolist(), labels.tolist())), "agreement")
    drawn = rng.multinomial(judged.size, counts / counts.sum(), size=RESAMPLES).astype(np.float64)
    tail = (1 - confidence) / 2
    low, high = np.quantile(_kappa(drawn), [tail, 1 - tail])
    equal = float((judged == labels).mean())
    return Agreement(float(_kappa(counts)), float(low), float(high), equal, int(judged.size))


def _kappa(table: FloatArray) -> FloatArray:
    """Kappa of tables of counts (..., 4): judge 0 and label 0, 0 and 1, 1 and 0, both 1.

    Where one rater never varies nothing was shown beyond chance, so kappa is 0 (also for both alike).
    """
    share = table / table.sum(axis=-1, keepdims=True)
    equal = share[..., 0] + share[..., 3]
    judge, label = share[..., 2] + share[..., 3], share[..., 1] + share[..., 3]
    chance = judge * label + (1 - judge) * (1 - label)
    return np.divide(equal - chance, 1 - chance, out=np.zeros_like(equal), where=chance < 1)


@dataclass(frozen=True, slots=True)
class Preference:
    """What a pairwise judge said of one pair of answers, asked twice with the places swapped.

    Each is the candidate's share of the win: 1 it won, 0 the champion did, 0.5 a tie.
    """

    candidate_first: float
    candidate_second: float

    @property
    def score(self) -> float:
        """The candidate's share of the win with the order averaged out."""
        return (self.candidate_first + self.candidate_second) / 2

    @property
    def follows_order(self) -> bool:
        """Whether the winner changed with the place: then the order decided, not the answers."""
        return {self.candidate_first, self.candidate_second} == {0.0, 1.0}


def order_bias(preferences: list[Preference]) -> tuple[float, float]:
    """Share of pairs whose winner followed the order, and how much more the first place won (-1 to 1)."""
    if not preferences:
        return 0.0, 0.0
    followed = float(np.mean([one.follows_order for one in preferences]))
    first = float(np.mean([one.candidate_first - one.candidate_second for one in preferences]))
    return followed, first
