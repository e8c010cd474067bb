"""The shadow: replays live requests against the candidate, off the request path, and compares.

Nobody sees the candidate's answers. Every look's counts are stored, so a resumed release goes on
where it was.
"""

from __future__ import annotations

import logging

from serving.records import Stage

_LOG = logging.getLogger("interlock.shadow")
_STAGE = Stage.SHADOW.value
"""A look's batch: at most this many exchanges are replayed before the evidence is looked at."""
_BATCH = 50
_IDLE_S = 0.5
