"""`make bench-look`: what one look over a million new observations costs, and what is kept of it.

CPU time of the process: from the frame of finished requests to the verdict, with all latency quantiles
and the policy's usual window. Each look is measured `REPEATS` times on fresh state, the least is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd

from configs.policy import Canary
from evals.canary import CanaryJudge
from evals.looks import LatencyThresholds
from evals.units import UnitTracker
from evals.users import USERS_MAX

REQUESTS = 1_000_000
REPEATS = 3
TARGET_S = 0.5
POLICY = Canary()
SECONDS = 60.0
"""Every look's requests arrived in so many seconds."""


def requests(users: range, look: int, rng: np.random.Generator) -> pd.DataFrame:
    """A million finished requests; each user of the range comes as often as any other, in random order."""
    who = np.resize(np.arange(users.start, users.stop), REQUESTS)
    rng.shuffle(who)
    service_ms = rng.lognormal(3, 0.5, REQUESTS)
    return pd.DataFrame(
        {
            "time": np.sort(rng.uniform(look * SECONDS, (look + 1) * SECONDS, REQUESTS)),
            "user": np.array([f"{number:032x}" for number in who], dtype=object),
            "share": 0.05,
            "candidate": who % 20 == 0,
            "failed": rng.random(REQUESTS) < 0.01,
            "service_ms": service_ms,
            "total_ms": service_ms,
        }
    )


def look_s(assign_by: Literal["user", "request"], before: list[pd.DataFrame], frame: pd.DataFrame) -> float:
    """CPU seconds of the look at `frame`, after those at `before`."""
    thresholds = LatencyThresholds.from_past(np.random.default_rng(0).lognormal(3, 0.5, 5_000))
    taken: list[float] = []
    for _ in range(REPEATS):
        tracker, judge = UnitTracker(POLICY, assign_by, thresholds), CanaryJudge(POLICY, thresholds)
        for index, earlier in enumerate(before):
            tracker.observe(earlier, (index + 2) * SECONDS)
        began = time.process_time()
        statistics = tracker.observe(frame, (len(before) + 2) * SECONDS)
        judge.look(statistics, step=0, seconds_at_step=SECONDS)
        taken.append(time.process_time() - began)
    return min(taken)


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(1)
    first, second = requests(range(REQUESTS), 0, rng), requests(range(REQUESTS, 2 * REQUESTS), 1, rng)
    heavy = requests(range(50_000), 0, rng)
    cases: dict[str, Callable[[], float]] = {
        "a million new users": lambda: look_s("user", [], first),
        "another million, after a million": lambda: look_s("user", [first], second),
        "50,000 users, twenty requests each": lambda: look_s("user", [], heavy),
        "assigned by request": lambda: look_s("request", [], first),
    }
    print(f"One look over {REQUESTS:,} new observations, CPU seconds (to reach: under {TARGET_S}):")
    for name, measure in cases.items():
        taken = measure()
        print(f"  {name:40}{taken:6.2f}  {'reached' if taken < TARGET_S else 'NOT reached'}")
    print(f"Kept of a user: 10 bytes; of a release: {USERS_MAX:,} users a family of metrics at most.")


if __name__ == "__main__":
    main()
