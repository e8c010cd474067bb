"""uvicorn whose end is decided by us: its own signal handlers would close the door too early."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import uvicorn


class QuietServer(uvicorn.Server):
    """Leaves signals to its owner, who is seen to leave first and sets `should_exit` then."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle none."""
        yield
