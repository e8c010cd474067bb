"""Guards against fooling oneself: may these held-out rows and this candidate be judged at all?

Each is one question with one finding. What blocks says so; what only warns is INCONCLUSIVE and
does not block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.evaluation import Freshness, Leakage, Live
from evals.metrics import FloatArray
from evals.verdict import Finding, Outcome

LEAKAGE, AGE, SIGNATURE, LIVE = "leakage", "age of the rows", "signature", "live traffic"
_SHOWN_MAX = 5
_CHANCE = 0.001
_FUTURE_S = 86_400.0
_MILLISECONDS = 1e11
"""Numbers above this are milliseconds since the epoch: as seconds they would lie in the year 5138."""


def warn(metric: str, reason: str, **numbers: Any) -> Finding:
    """A finding that informs and blocks nothing."""
    return Finding(metric, Outcome.INCONCLUSIVE, reason, blocks=False, **numbers)


def judge_leakage(
    policy: Leakage,
    version: str,
    held_out: NDArray[np.uint64],
    training: NDArray[np.uint64],
    numbers: NDArray[np.int64],
    *,
    is_champion: bool = False,
) -> Finding:
    """Whether held-out rows are among a version's training rows, by the hashes of both (n,) and (m,).

    Rows of few distinct values repeat by chance. How often is seen in the training data itself: the
    share of its rows that have a twin among the others estimates the share of fresh rows that would
    be found. Only what is above that (and no luck, binomial at 0.1%) and above `max_share` is leakage.
    A leaking champion only warns: its numbers flatter it, which is hard on the candidate, not unsafe.
    """
    from scipy.stats import binom

    known, repeats = np.unique(training, return_counts=True)
    found = np.isin(held_out, known)
    count, rows = int(found.sum()), int(held_out.size)
    chance = float(repeats[repeats > 1].sum() / max(training.size, 1))
    allowed = min(chance + policy.max_share, 1.0)
    metric = LEAKAGE if not is_champion else f"{LEAKAGE} (champion)"
    by_chance = f", {chance:.2%} would be by the training data's own repetitions" if chance else ""
    share = count / max(rows, 1)
    text = f"{count} of {rows} held-out rows ({share:.2%}) are in the training data of version {version}"
    luck = float(binom.sf(count - 1, rows, allowed)) if allowed < 1 else 1.0
    if count <= allowed * rows or luck >= _CHANCE:
        return Finding(metric, Outcome.PASS, text + by_chance, candidate=share, units=rows)
    examples = ", ".join(str(number) for number in numbers[found][:_SHOWN_MAX])
    reason = f"{text}{by_chance}: rows {examples}{', ...' if count > _SHOWN_MAX else ''} (counted from 0)"
    if is_champion:
        return warn(
            metric, f"{reason}. Its numbers flatter it: the comparison is hard on the candidate", units=rows
        )
    reason += ". Next: hold out other rows, or train without these"
    return Finding(metric, Outcome.FAIL, reason, candidate=share, units=rows)


def newest_time(values: Any) -> float | None:
    """The newest moment in a column, in seconds since the epoch; None where nothing in it is a time."""
    import pandas as pd

    column: Any = pd.Series(np.asarray(values)) if not isinstance(values, pd.Series) else values
    if pd.api.types.is_bool_dtype(column):
        return None
    if pd.api.types.is_numeric_dtype(column):
        newest = float(column.max())
        return None if np.isnan(newest) else newest / 1000 if newest > _MILLISECONDS else newest
    parsed: Any = pd.to_datetime(column, errors="coerce", utc=True, format="mixed")
    moment = parsed.max()
    return None if pd.isna(moment) else float(moment.timestamp())


def judge_age(policy: Freshness, newest: float | None, now: float) -> Finding:
    """Whether the newest held-out row is young enough. Times in seconds since the epoch."""
    what = f"column {policy.column!r}" if policy.column else "the data's own time"
    if newest is None:
        reason = f"the age of the held-out rows is not known: {what} holds no time. "
        return Finding(AGE, Outcome.ERROR, reason + "Next: correct evaluation.fresh.column")
    age = now - newest
    if age < -_FUTURE_S:
        reason = f"by {what} the newest held-out row is {_duration(-age)} in the future. "
        return Finding(AGE, Outcome.ERROR, reason + "Next: check the column's unit (seconds) and time zone")
    reason = f"by {what} the newest held-out row is {_duration(max(age, 0))} old, "
    reason += f"the policy allows {_duration(policy.max_age_s)}"
    if age > policy.max_age_s:
        reason += ". Next: hold out newer rows"
        return Finding(AGE, Outcome.INCONCLUSIVE, reason, candidate=age)
    return Finding(AGE, Outcome.PASS, reason, candidate=age)


def judge_signature(broken: str | None, *, allowed: bool) -> Finding:
    """Whether the champion's clients can be answered. `broken` says what they would miss, None: not known."""
    if broken is None:
        return warn(
            SIGNATURE,
            "one of the versions has no signature, so nobody knows whether clients would notice. "
            "Next: log models with a signature",
        )
    if not broken:
        return Finding(SIGNATURE, Outcome.PASS, "the champion's clients can be answered: no signature breaks")
    if allowed:
        return warn(SIGNATURE, f"clients would notice, which the policy allows: {broken}")
    return Finding(
        SIGNATURE,
        Outcome.FAIL,
        f"clients of the champion would break: {broken}. Next: keep the signature, or set "
        "evaluation.allow_signature_change once the clients are ready",
    )


def judge_live(policy: Live, what: str, held_out: Sequence[Any], live: Sequence[Any]) -> Finding:
    """Whether labels or answers are spread on the held-out rows as they are live. Never blocks.

    Classes: total variation distance, beyond what so few rows differ by anyhow. Numbers: Wasserstein
    distance in standard deviations of the held-out rows.
    """
    metric = f"{LIVE}: {what}"
    if len(live) < policy.min_rows:
        reason = f"{what}: {len(live)} known from live traffic, under {policy.min_rows}: not compared"
        return warn(metric, reason, units=len(live))
    numbers = _numbers(held_out), _numbers(live)
    if numbers[0] is None or numbers[1] is None or np.unique(numbers[0]).size <= 2:
        distance, noise, shift = _total_variation(_texts(held_out), _texts(live))
    else:
        distance, noise, shift = _wasserstein(numbers[0], numbers[1])
    words = (
        f"{what} on the held-out rows and live are {distance:.3g} apart (over {policy.max_distance:g} warns)"
    )
    if distance <= policy.max_distance + noise:
        return Finding(metric, Outcome.PASS, words, candidate=distance, units=len(live), blocks=False)
    reason = f"{words}: {shift}. The numbers may not hold live. Next: hold out rows of today's traffic"
    return warn(metric, reason, candidate=distance, units=len(live))


def _total_variation(held_out: list[str], live: list[str]) -> tuple[float, float, str]:
    left, right = (np.unique(side, return_counts=True) for side in (held_out, live))
    names = sorted({*left[0].tolist(), *right[0].tolist()})
    shares = [
        np.array([dict(zip(found, counts / counts.sum(), strict=True)).get(name, 0.0) for name in names])
        for found, counts in (left, right)
    ]
    gaps = shares[1] - shares[0]
    mean = (shares[0] + shares[1]) / 2
    noise = np.sqrt(mean * (1 - mean) * (1 / len(held_out) + 1 / len(live))).sum() / 2
    worst = int(np.argmax(np.abs(gaps)))
    shift = f"{names[worst]!r} is {shares[0][worst]:.1%} held out, {shares[1][worst]:.1%} live"
    return float(np.abs(gaps).sum() / 2), float(noise), shift


def _wasserstein(held_out: FloatArray, live: FloatArray) -> tuple[float, float, str]:
    from scipy.stats import wasserstein_distance

    spread = float(held_out.std()) or 1.0
    noise = float(np.sqrt(1 / held_out.size + 1 / live.size))
    shift = f"the mean is {held_out.mean():.4g} held out, {live.mean():.4g} live"
    return float(wasserstein_distance(held_out, live)) / spread, noise, shift


def _numbers(values: Sequence[Any]) -> FloatArray | None:
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return None
    return found if bool(np.isfinite(found).all()) else None


def _texts(values: Sequence[Any]) -> list[str]:
    """Classes as text, the same for 1, 1.0 and '1'."""
    made: list[str] = []
    for value in values:
        text = str(value)
        made.append(text.removesuffix(".0"))
    return made


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
