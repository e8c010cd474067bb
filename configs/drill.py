"""The policy's part that makes an endpoint a drill endpoint: rollbacks are rehearsed there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from configs.section import Section

Fault = Literal["errors", "slow-tail", "crash-on-start", "crash-mid-canary", "bad-outputs", "lost-telemetry"]


class Drill(Section):
    """A known-bad version is released with synthetic traffic; it must be stopped, and all be as before.

    Only an endpoint whose policy has this section is drilled. Its model belongs to the drill, which registers
    all versions of it.
    """

    faults: tuple[Fault, ...] = Field(
        default=(
            "errors",
            "slow-tail",
            "crash-on-start",
            "crash-mid-canary",
            "bad-outputs",
            "lost-telemetry",
        ),
        min_length=1,
        description="Which faults take turns, one a scheduled run.",
    )
    rate_per_s: float = Field(default=60, gt=0, le=1000, description="Synthetic requests a second.")
    stopped_within_s: float = Field(
        default=120,
        gt=0,
        description="Longest time from the onset of a fault in the canary until the release is over; longer "
        "fails the drill. Faults that are there from the start meet other stages first: timeout_s.",
    )
    timeout_s: float = Field(
        default=600,
        gt=0,
        description="Longest wait for a release to reach its canary, for a champion to serve, and until a "
        "fault that is there from the start (crash-on-start, bad-outputs) is stopped.",
    )
