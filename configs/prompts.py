"""The prompt that a language model answers under: a version of its own, from MLflow's registry."""

from __future__ import annotations

from pydantic import Field

from configs.section import Section


class Prompt(Section):
    """With it, a release is a pair of model and prompt, and moving either is a release."""

    name: str = Field(min_length=1, description="Registered prompt in MLflow.")
    may_override: bool = Field(
        default=False,
        description="Whether a client's own system message is kept beside it; without, it is refused "
        "with 400: a client must not put another prompt in the place of the one that was proven.",
    )
