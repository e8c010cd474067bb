"""Which engine decides: a fingerprint of the code of `evals/` that decisions are made by.

It is stored with what was decided. Where a past decision does not come out the same, it tells a
record that was changed from an engine that was.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_MODULES = (
    "canary",
    "contrast",
    "control",
    "decisions",
    "evidence",
    "explaining",
    "looks",
    "ramp",
    "sequential",
    "shadow",
    "verdict",
    "watch",
    "watch_decisions",
    "wording",
)


@cache
def engine() -> str:
    """Twelve hex digits that change with the code of the judges, or with numpy."""
    import numpy as np

    import evals.verdict

    folder = Path(evals.verdict.__file__).parent
    found = hashlib.sha256(np.__version__.encode())
    for name in _MODULES:
        found.update((folder / f"{name}.py").read_bytes())
    return found.hexdigest()[:12]
