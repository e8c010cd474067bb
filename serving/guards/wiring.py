"""The guards of a replica's policy around its app."""

from __future__ import annotations

from serving.capture.middleware import ASGIApp
from serving.llm.errors import NotServable
from serving.llm.spec import LlmSpec


def with_guards(app: ASGIApp, spec: LlmSpec) -> ASGIApp:
    """The app behind the policy's guards, where there are any. Raises `NotServable` for unknown checks."""
    guards = spec.serving.guards
    if not guards.is_active:
        return app
    from serving.guards.checks import UnknownCheck
    from serving.guards.layer import GuardLayer

    try:
        return GuardLayer(app, guards, version=spec.version)
    except UnknownCheck as error:
        raise NotServable(str(error)) from error
