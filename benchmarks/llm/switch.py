"""Capture that a request can go round, so that one engine is measured with it and without.

Two engines of the same making are further apart (5% were seen) than the capture could ever put them.
Loaded into vLLM (`--middleware`), where only the standard library and the capture itself are at hand.
"""

from __future__ import annotations

from serving.capture.generation import GenerationCapture
from serving.capture.middleware import ASGIApp, Receive, Scope, Send

AROUND = "x-bench-around"


class SwitchedCapture:
    """The capture, but for requests with the header `AROUND`."""

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._captured = GenerationCapture(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope."""
        is_around = scope["type"] == "http" and AROUND.encode() in dict(scope["headers"])
        await (self._plain if is_around else self._captured)(scope, receive, send)
