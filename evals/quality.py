"""What an answer is worth once the truth is known: a score in [0, 1], and what scores say of a version."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from configs.labels import Labels
from evals.sequential import LEVELS

CONFIDENCE_Z = 2.326
"""One-sided 99% of the normal distribution."""


def score(policy: Labels, prediction: Any, label: Any) -> float | None:
    """How good the answer was: 1 is perfect, 0 as bad as can be. None where the two cannot be compared."""
    if prediction is None or label is None:
        return None
    if policy.metric == "correct":
        return _correct(policy.threshold, prediction, label)
    said, true = number(prediction), number(label)
    if said is None or true is None:
        return None
    if policy.metric == "brier":
        return max(0.0, 1 - (said - true) ** 2) if 0 <= said <= 1 and 0 <= true <= 1 else None
    assert policy.scale is not None  # the policy's own check
    return max(0.0, 1 - abs(said - true) / policy.scale)


def number(value: Any) -> float | None:
    """A finite number, also where it came as text or flag; None for everything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def by_badness(scores: Iterable[float]) -> tuple[int, ...]:
    """How many scores have each badness of `evals.sequential.LEVELS`, rounded to the nearest."""
    counts = [0] * len(LEVELS)
    for one in scores:
        counts[round((1 - min(max(one, 0.0), 1.0)) * (len(LEVELS) - 1))] += 1
    return tuple(counts)


def is_bad(worth: float, key: str) -> bool:
    """A score as good or bad, bad with probability 1 - score: the mean badness stays what it is.

    The chance is a hash of `key`, so two versions that answered the same request draw the same lot,
    and differ only where one is really worse. Scores of 0 and 1 are just what they are.
    """
    lot = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return lot < 1 - worth


def is_proven_good(scores: Sequence[float], level: float) -> bool:
    """Whether the mean score is at least `level` with 99% confidence.

    Wilson's interval, with the mean score as the share: for bounded scores it is on the safe side,
    because no variable in [0, 1] varies more than a 0/1 one of the same mean.
    """
    count = len(scores)
    if not count:
        return False
    mean, z2 = sum(scores) / count, CONFIDENCE_Z**2
    spread = CONFIDENCE_Z * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count * count))
    return (mean + z2 / (2 * count) - spread) / (1 + z2 / count) >= level


def _correct(threshold: float, prediction: Any, label: Any) -> float:
    said, true = number(prediction), number(label)
    if said is None or true is None:
        return float(str(prediction) == str(label))
    is_probability = true in (0.0, 1.0) and 0 <= said <= 1
    return float((said >= threshold) == bool(true) if is_probability else said == true)
