"""The policy's `serving.guards`: limits of a request, and checks of what goes in and what comes out.

They stand before a language model on the local platform. A check finds places in a text; its action
says what a find means. What a check costs and cannot see: docs/llm.md, "Guards".
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section

PersonalKind = Literal["email", "credit_card", "iban", "phone", "ip_address", "us_ssn"]
Action = Literal["block", "redact", "count"]

PERSONAL, PHRASES, INJECTION_PHRASES = "personal", "phrases", "injection_phrases"
KINDS: tuple[PersonalKind, ...] = ("email", "credit_card", "iban")
"""What `personal` looks for unless the policy says."""
BUILT_IN = (PERSONAL, PHRASES, INJECTION_PHRASES)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


class GuardLimits(Section):
    """Requests beyond one of these get a 400 in OpenAI's form that names the limit."""

    body_bytes: int | None = Field(default=None, ge=1, description="Most bytes of a request's body.")
    prompt_characters: int | None = Field(
        default=None, ge=1, description="Most characters of all texts in a request, tools and schemas too."
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens that a request may ask for (max_tokens, max_completion_tokens). Put into "
        "requests that name none, for the engine's own limit may be higher.",
    )
    over_max_tokens: Literal["refuse", "clamp"] = Field(
        default="refuse", description="What becomes of a request that asks for more."
    )
    n: int | None = Field(
        default=None,
        ge=1,
        description="Most answers of a request: n or best_of, times the prompts listed.",
    )
    refused: tuple[str, ...] = Field(
        default=(), description="Parameters that no request may have: logit_bias, chat_template, ..."
    )

    @model_validator(mode="after")
    def _sensible(self) -> GuardLimits:
        needed = sorted({"model", "messages", "prompt", "input"} & set(self.refused))
        if needed:
            raise ValueError(f"serving.guards.limits.refused: no request can do without {', '.join(needed)}")
        if self.max_tokens is None and self.over_max_tokens == "clamp":
            raise ValueError("serving.guards.limits.over_max_tokens has no meaning without max_tokens")
        return self


class GuardCheck(Section):
    """One check of texts and what a find does."""

    check: str = Field(
        description="personal (Presidio's recognisers), phrases (the operator's own list), "
        "injection_phrases (a list of well-known phrases, no classifier), or a dotted callable "
        "`package.module.function(text) -> [(kind, start, end), ...]`."
    )
    action: Action = Field(description="block: refuse or end the answer; redact: put <kind> there; count.")
    kinds: tuple[PersonalKind, ...] = Field(
        default=(),
        description="What `personal` looks for; empty: email, credit_card, iban. phone costs ten times as "
        "much as all others together.",
    )
    phrases: tuple[str, ...] = Field(
        default=(), description="What `phrases` looks for: words in order, case and spaces ignored."
    )

    @model_validator(mode="after")
    def _known(self) -> GuardCheck:
        if self.check not in BUILT_IN and not _DOTTED.fullmatch(self.check):
            raise ValueError(
                f"no check {self.check!r}: use {', '.join(BUILT_IN)}, or a dotted name: acme.checks.find"
            )
        if self.kinds and self.check != PERSONAL:
            raise ValueError(f"`kinds` is for the check `{PERSONAL}` only, not for {self.check!r}")
        if bool(self.phrases) != (self.check == PHRASES):
            raise ValueError(f"`phrases` is for the check `{PHRASES}`, which needs it")
        if any(not re.search(r"\w", phrase) for phrase in self.phrases):
            raise ValueError("`phrases` has one without a word in it, which would be found everywhere")
        return self


class StreamHold(Section):
    """How long a checked stream is held back: that is what checking it costs in latency."""

    hold_characters: int = Field(
        default=200, ge=1, le=20_000, description="A check runs at a sentence's end, or after this many."
    )
    overlap_characters: int = Field(
        default=80,
        ge=0,
        le=4_000,
        description="Of an unfinished sentence this many stay back, so that what two events share is found. "
        "As long as the longest find that must not get out in part.",
    )


class Guards(Section):
    """What stands between clients and a language model."""

    limits: GuardLimits = Field(default_factory=GuardLimits, description="Of a request.")
    input: tuple[GuardCheck, ...] = Field(default=(), description="Checks of what clients send, in order.")
    output: tuple[GuardCheck, ...] = Field(default=(), description="Checks of what is answered, in order.")
    stream: StreamHold = Field(default_factory=StreamHold, description="Streams under output checks.")
    timeout_s: float = Field(default=2.0, gt=0, le=60, description="A check that takes longer has failed.")
    on_error: Literal["block", "pass"] = Field(
        default="block",
        description="What a failed check means. block: 503 for a request, the end for an answer; "
        "pass: as if nothing were found. Counted either way.",
    )
    blocked_is_failure: bool = Field(
        default=True,
        description="A blocked answer (finish_reason content_filter) is a failure of its version, for the "
        "canary's and the watch's errors. Blocked requests never are.",
    )

    @model_validator(mode="after")
    def _something(self) -> Guards:
        for stage in ("input", "output"):
            names = [check.check for check in getattr(self, stage) if check.check != PHRASES]
            twice = sorted({name for name in names if names.count(name) > 1 and name not in BUILT_IN})
            if twice:
                raise ValueError(f"serving.guards.{stage} names {twice[0]} twice")
        return self

    @property
    def is_active(self) -> bool:
        """Whether any of it does anything."""
        return bool(self.input or self.output) or self.limits != GuardLimits()
