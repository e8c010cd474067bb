"""Whom Interlock tells, where, and how often."""

from __future__ import annotations

from pydantic import Field

from configs.section import Section


class Notify(Section):
    """How alerts reach people. Every alert also stands in the trail, in the log and as a Prefect event."""

    repeat_after_s: float = Field(
        default=3600, gt=0, description="The same alert of an endpoint is told once in this time."
    )
