"""Errors of this room. Each says what was asked, what was found, and the next step.

ServingError
├── TransientError          try again later, unchanged
│   ├── PlatformUnavailable     the platform's control socket or API does not answer
│   ├── NotHealthy              a replica did not become healthy in time
│   ├── Busy                    the platform is still working on an earlier change
│   ├── Throttled               the platform's API takes no more requests for the moment
│   └── CredentialsRejected     the platform does not know us (any more)
├── NotApplied              written, but read back differently
│   └── ChangeUndone            the platform took a change back by itself
├── NoCapacity              the platform has no machine of the kind that was asked for
├── QuotaExceeded           the account may not have one more of what was asked for
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


class Busy(TransientError):
    """The platform is still working on an earlier change of the same endpoint."""


class Throttled(TransientError):
    """The platform's API takes no more requests for the moment, also after a few tries."""


class CredentialsRejected(TransientError):
    """The platform does not know us (any more); others may renew the credentials at any time."""


class NotApplied(ServingError):
    """What was read back differs from what was written."""


class ChangeUndone(NotApplied):
    """The platform took a change back by itself, and serves what it served before."""


class NoCapacity(ServingError):
    """The platform has no machine of the kind that was asked for, now and in this place."""


class QuotaExceeded(ServingError):
    """The account may not have one more of what was asked for."""


class Fenced(ServingError):
    """A newer generation or another owner exists; whoever gets this must change nothing more."""


class LeaseExpired(ServingError):
    """The share had run out before it was renewed; it is never silently renewed."""


class Refused(ServingError):
    """The platform does not allow this in its present state."""


class SetupError(ServingError):
    """Something on this machine is missing or wrong; the message says how to mend it."""
