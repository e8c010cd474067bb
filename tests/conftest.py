"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# An example takes as long as the machine lets it: a time-out of each would say nothing of the code.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
