"""Made-up canaries: many independent streams of counts at once, look by look.

A look is some units, each the candidate's with probability pi. Shapes: S streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Counts:
    """Errors of one look: units and errors of both arms (S,), and the share they were drawn with."""

    pi: float
    units_b: IntArray
    errors_b: IntArray
    units_a: IntArray
    errors_a: IntArray


@dataclass(frozen=True, slots=True)
class Scenario:
    """How the champion's error rate (S,) and the share go over a release; progress runs from 0 to 1.

    `ratio` is the candidate's error rate over the champion's at the same moment.
    """

    name: str
    rate: Callable[[float, np.random.Generator, int], FloatArray]
    share: Callable[[float], float] = lambda progress: 0.05
    ratio: float = 1.0
    host_noise: float = 0.0
    """Log-scale spread of the candidate's own host from look to look: breaks every test."""


def constant(rate: float) -> Callable[[float, np.random.Generator, int], FloatArray]:
    """The same rate always."""
    return lambda progress, rng, streams: np.full(streams, rate)


def _drifting(progress: float, rng: np.random.Generator, streams: int) -> FloatArray:
    return np.full(streams, 0.005 * 6**progress)


def _sinusoidal(progress: float, rng: np.random.Generator, streams: int) -> FloatArray:
    return np.full(streams, 0.015 * (1 + 0.8 * np.sin(8 * np.pi * progress)))


def _outages(progress: float, rng: np.random.Generator, streams: int) -> FloatArray:
    return np.where(rng.random(streams) < 0.02, 0.3, 0.01)


def _bursts(progress: float, rng: np.random.Generator, streams: int) -> FloatArray:
    return np.minimum(rng.gamma(0.5, 0.02, streams), 0.9)


def _ramp(progress: float) -> float:
    return (0.01, 0.05, 0.25, 0.5, 0.95)[min(int(5 * progress), 4)]


NULLS = (
    Scenario("constant 1%", constant(0.01)),
    Scenario("drift 0.5% to 3%", _drifting),
    Scenario("sinusoidal", _sinusoidal),
    Scenario("shared outages", _outages),
    Scenario("shared bursts", _bursts),
    Scenario("ramp 1-5-25-50-95%", constant(0.01), _ramp),
    Scenario("ramp and drift", _drifting, _ramp),
)
NOISY_HOST = Scenario("one noisy candidate host", constant(0.01), host_noise=0.7)
HARMS = tuple(
    Scenario(f"{ratio:g} times the errors", constant(0.01), ratio=ratio) for ratio in (1.5, 2, 5, 20)
)


def play(
    scenario: Scenario, *, streams: int, looks: int, per_look: int, rng: np.random.Generator
) -> Iterator[Counts]:
    """Looks of `per_look` expected candidate units at 5% (so 20 times as many units at any share)."""
    units = 20 * per_look
    for look in range(looks):
        progress = look / looks
        pi = scenario.share(progress)
        rate = scenario.rate(progress, rng, streams)
        of_b = rate * scenario.ratio
        if scenario.host_noise:
            noise = rng.normal(0, scenario.host_noise, streams) - scenario.host_noise**2 / 2
            of_b = of_b * np.exp(noise)
        units_b = rng.binomial(units, pi, streams)
        units_a = units - units_b
        errors_b = rng.binomial(units_b, np.minimum(of_b, 1))
        yield Counts(pi, units_b, errors_b, units_a, rng.binomial(units_a, rate))


# Sticky users -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserBatch:
    """Closed units of one pi: levels (twentieths) counted by stream and arm, shape (S, 21)."""

    pi: float
    candidate: FloatArray
    champion: FloatArray


def play_users(
    *, streams: int, users: int, looks_per_step: int, rng: np.random.Generator
) -> Iterator[tuple[list[UserBatch], Counts]]:
    """Users with error rates of their own, Zipf traffic, and a ramp 5-25-50-95%; no difference.

    Yields for each look the units (one value a user and share, pi = (s - h)/(1 - h)) and the same
    traffic as requests, which is what tests by request see.
    """
    rate = rng.beta(0.15, 8.0, (streams, users))
    bucket = rng.random((streams, users))
    held = np.zeros((streams, users))
    popularity = 1 / np.arange(1, users + 1) ** 1.1
    popularity /= popularity.sum()
    for share in (0.05, 0.25, 0.5, 0.95):
        seen_in = np.full((streams, users), looks_per_step)
        side = bucket < share
        for look in range(looks_per_step):
            # Heavy users come in every look; the rest once in a while.
            requests = rng.poisson(popularity * users * 0.5, (streams, users))
            errors = rng.binomial(requests, rate)
            fresh = (requests > 0) & (seen_in == looks_per_step)
            seen_in[fresh] = look
            entering = fresh & (share > held)
            pi = np.round((share - held) / np.maximum(1 - held, 1e-9), 12)
            window = np.minimum(requests, 10)
            bad = _of_window(errors, requests, window, rng)
            exact = 20 * bad / np.maximum(window, 1)
            level = np.floor(exact + (rng.random(exact.shape) < exact - np.floor(exact))).astype(np.int64)
            batches = [
                UserBatch(
                    float(value),
                    _levels(level, entering & (pi == value) & side),
                    _levels(level, entering & (pi == value) & ~side),
                )
                for value in np.unique(pi[entering])
            ]
            held = np.where(entering, np.where(side, 1.0, share), held)
            counts = Counts(
                share,
                (requests * side).sum(axis=1),
                (errors * side).sum(axis=1),
                (requests * ~side).sum(axis=1),
                (errors * ~side).sum(axis=1),
            )
            yield batches, counts


def _of_window(errors: IntArray, requests: IntArray, window: IntArray, rng: np.random.Generator) -> IntArray:
    """Errors among the first requests of the window: a draw without replacement."""
    long = requests > window
    bad = errors.copy()
    bad[long] = rng.hypergeometric(errors[long], (requests - errors)[long], window[long])
    return bad


def _levels(level: IntArray, rows: NDArray[np.bool_]) -> FloatArray:
    streams = level.shape[0]
    cells = level + 21 * np.arange(streams)[:, None]
    return np.bincount(cells[rows], minlength=21 * streams).reshape(streams, 21).astype(np.float64)


# Latency ------------------------------------------------------------------------------------------

LatencyCdf = Callable[[FloatArray], FloatArray]
"""P(latency > t); the champion's is lognormal with median 1 and sigma 0.5."""


def slower(factor: float) -> LatencyCdf:
    """The whole distribution multiplied."""
    from scipy.stats import norm

    return lambda t: np.asarray(norm.sf(np.log(np.asarray(t) / factor) / 0.5))


def doubled_tail(t: FloatArray) -> FloatArray:
    """Everything above the champion's p97 takes twice as long; the median is unchanged."""
    from scipy.stats import norm

    cut = float(np.exp(0.5 * norm.ppf(0.97)))
    plain = norm.sf(np.log(t) / 0.5)
    doubled = norm.sf(np.log(np.maximum(t / 2, cut)) / 0.5)
    return np.where(t <= cut, plain, doubled)
