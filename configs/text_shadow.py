"""How the shadow compares answers in words."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.generation import Api
from configs.section import Section


class TextShadow(Section):
    """When two answers in words agree, and what a person may see of those that do not."""

    compare: Literal["normalised", "words", "embeddings"] = Field(
        default="words",
        description="normalised: the same but for case, white space and final stops; words: the share of "
        "words in the same order; embeddings: the cosine by `embeddings`.",
    )
    min_similarity: float = Field(
        default=0.8, ge=0, le=1, description="Answers less alike disagree (words, embeddings)."
    )
    embeddings: Api | None = Field(default=None, description="Any /v1/embeddings; needed to compare by it.")
    min_cosine: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="Where the endpoint itself answers /v1/embeddings: vectors less alike disagree. Clients "
        "compare them with vectors that the champion made.",
    )
    judge_apart: int = Field(
        default=0,
        ge=0,
        description="Most answers a look, drawn by lot of those that disagree, of which the judge of "
        "`evaluation` says which is better: those it finds no worse agree after all. Answers alike in words "
        "are not judged.",
    )
    judge_sample: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Share of pairs, alike in words or not, whose answers the judge of `evaluation` judges "
        "one by one: a pair disagrees where it finds only the champion's right. Only these are compared "
        "then; other pairs count for errors and latency alone.",
    )
    examples: int = Field(default=20, ge=0, le=200, description="Most different answers that the page shows.")
    show: Literal["redacted", "full", "nothing"] = Field(
        default="redacted",
        description="Texts on the page: without the personal data that patterns find, as they are, or none. "
        "None in any case where `capture` keeps no words: sample 0, or content, text, prompt, ... in drop or "
        "hash.",
    )

    @property
    def asks_a_judge(self) -> bool:
        """Whether the evaluation's judge has a word in it, once it has shown that it agrees with people."""
        return self.judge_apart > 0 or self.judge_sample > 0

    @model_validator(mode="after")
    def _complete(self) -> TextShadow:
        if self.compare == "embeddings" and self.embeddings is None:
            raise ValueError("shadow.text.compare embeddings needs shadow.text.embeddings")
        if self.judge_apart and self.judge_sample:
            raise ValueError("shadow.text: judge_sample asks about pairs apart too; leave judge_apart out")
        return self
