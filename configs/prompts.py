"""The prompt that a language model answers under: a version of its own, from MLflow's registry."""

from __future__ import annotations

from pydantic import Field

from configs.section import Section


class Prompt(Section):
    """With it, a release is a pair of model and prompt, and moving either is a release."""

    name: str = Field(min_length=1, description="Registered prompt in MLflow.")
