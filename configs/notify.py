"""Whom Interlock tells, where, and how often. Addresses are secrets, so the policy only names them."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from configs.section import Section

PLACEHOLDERS = ("endpoint", "model", "was", "now", "stage", "reason", "who", "owner", "time", "link")
"""What a communication's text may contain in braces."""
_WHERE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^\s:]+")


def _is_reference(text: str) -> str:
    """A URL here would be a secret in a file that is committed, so its text is not repeated either."""
    if not _WHERE.fullmatch(text):
        raise ValueError(
            "an address is a secret: name where it is, env:VARIABLE or file:PATH (relative to secrets/)"
        )
    return text


def _is_template(text: str) -> str:
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        fields = [
            (name, spec or "") for _, name, spec, _ in string.Formatter().parse(text) if name is not None
        ]
        wrong = [
            f"{name}:{spec}" if spec else name
            for name, spec in fields
            if name not in PLACEHOLDERS or "{" in spec
        ]
        if not wrong:
            text.format(**dict.fromkeys(PLACEHOLDERS, "text"))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces") from error
    if wrong:
        raise ValueError(f"{{{wrong[0]}}} is unknown; there is {known}")
    return text


Address = Annotated[str, AfterValidator(_is_reference)]


class Communication(Section):
    """What is said when users have been taken off a version, beside the alert's own routes."""

    to: tuple[Address, ...] = Field(default=(), description="Further addresses: clients, stakeholders.")
    text: Annotated[str, AfterValidator(_is_template)] = Field(
        default="Version {was} of {endpoint} was rolled back; version {now} serves. Why: {reason} ({who}).",
        description="The message, with {endpoint}, {model}, {was}, {now}, {stage}, {reason}, {who}, {owner}, "
        "{time} and {link} filled in.",
    )


class Notify(Section):
    """Routes per severity. Every alert also stands in the trail, in the log and as a Prefect event."""

    critical: tuple[Address, ...] = Field(
        default=(),
        description="Where critical alerts go: env:VARIABLE or file:PATH holding Apprise URLs "
        "(slack://, pagerduty://, opsgenie://, mailto://, json://, ...).",
    )
    warning: tuple[Address, ...] = Field(default=(), description="Where warnings go.")
    info: tuple[Address, ...] = Field(default=(), description="Where news goes.")
    rollback: Communication = Field(
        default_factory=Communication, description="The communication of a rollback."
    )
    repeat_after_s: float = Field(
        default=3600, gt=0, description="The same alert of an endpoint is told once in this time."
    )
    timeout_s: float = Field(
        default=10, gt=0, le=60, description="An address that has not answered after this did not get it."
    )
    retry_for_s: float = Field(
        default=3600, ge=0, description="`reconcile` tries again for this long what did not arrive."
    )

    def route(self, severity: Literal["critical", "warning", "info"]) -> tuple[str, ...]:
        """The addresses of a severity."""
        return {"critical": self.critical, "warning": self.warning, "info": self.info}[severity]
