"""Errors of this room. Each says what was asked, what was found, and the next step.

ServingError
├── TransientError          try again later, unchanged
│   ├── PlatformUnavailable     the platform's control socket or API does not answer
│   └── NotHealthy              a replica did not become healthy in time
├── NotApplied              written, but read back differently
├── Fenced                  a newer generation or another owner exists: stop, change nothing
├── LeaseExpired            the share had already run out: re-enter through fresh checks
├── Refused                 the platform does not allow this in its present state
└── SetupError              something on this machine is missing or wrong
"""

from __future__ import annotations


class ServingError(Exception):
    """Base of all errors raised by serving/."""


class TransientError(ServingError):
    """Worth trying again, unchanged."""


class PlatformUnavailable(TransientError):
    """The platform's control socket or API does not answer."""


class NotHealthy(TransientError):
    """A replica did not become healthy in time."""


class NotApplied(ServingError):
    """What was read back differs from what was written."""


class Fenced(ServingError):
    """A newer generation or another owner exists; whoever gets this must change nothing more."""


class LeaseExpired(ServingError):
    """The share had run out before it was renewed; it is never silently renewed."""


class Refused(ServingError):
    """The platform does not allow this in its present state."""


class SetupError(ServingError):
    """Something on this machine is missing or wrong; the message says how to mend it."""
