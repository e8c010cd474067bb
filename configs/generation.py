"""The offline gate of a language model: prompts, what is measured on the answers, and who judges them.

The answers come from the placed replica at zero share, not from a model loaded into the flow's process:
what is judged is what would serve, prompt and decoding included.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from configs.section import URL_PATTERN, Probability, Section

ScorerKind = Literal[
    "exact_match",
    "contains",
    "json_schema",
    "rouge_l",
    "similarity",
    "refusal",
    "pii",
    "judge",
    "pairwise",
    "latency_ms",
    "tokens_out",
    "cost",
]
LESS_IS_BETTER = frozenset({"latency_ms", "tokens_out", "cost"})
"""Kinds in a unit of their own; all others are scores in [0, 1] of which more is better."""


class Api(Section):
    """A model behind an OpenAI-compatible API: a provider's, or a server of one's own."""

    url: str = Field(pattern=URL_PATTERN, description="Base URL, up to and including /v1.")
    model: str = Field(min_length=1, description="The model's name there.")
    key: str | None = Field(
        default=None,
        pattern=r"^env:[A-Z][A-Z0-9_]*$",
        description="Where the API key is: env:VARIABLE of the worker's environment; none without it.",
    )
    timeout_s: float = Field(default=60, gt=0, description="A call without an answer after this failed.")
    retries: int = Field(default=3, ge=0, description="Tries after the first for 429, 5xx and no answer.")
    concurrency: int = Field(default=4, ge=1, description="Calls in flight.")


class Decoding(Section):
    """How answers are asked for: the fields of a request that not every model takes."""

    max_tokens: int = Field(
        default=256, ge=1, description="Most tokens of an answer; what a model thinks aloud counts too."
    )
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens",
        description="The request's field that says so: OpenAI's reasoning models take only "
        "max_completion_tokens.",
    )
    temperature: float | None = Field(
        default=0,
        ge=0,
        description="0 decodes deterministically; null: not sent, for models that refuse any but their own.",
    )
    seed: int | None = Field(
        default=0, description="Seed of the first sample; each further one counts up; null: not sent."
    )

    def request_fields(self, sample: int = 0) -> dict[str, int | float]:
        """These fields as a request names them."""
        fields: dict[str, int | float] = {self.tokens_field: self.max_tokens}
        if self.temperature is not None:
            fields["temperature"] = self.temperature
        if self.seed is not None:
            fields["seed"] = self.seed + sample
        return fields


class Judge(Decoding):
    """A model that judges answers. It may gate only once it agrees with people on labelled answers."""

    api: Api = Field(description="Where the judge answers.")
    max_tokens: int = Field(
        default=1024, ge=1, description="Most tokens of a judgement, with what it thinks before it."
    )
    rubric: str = Field(min_length=1, description="What makes an answer right, in words for the judge.")
    labelled: str | None = Field(
        default=None,
        description="Answers that people labelled, to check the judge on; the scorer judge and "
        "shadow.text.judge_sample need them: jsonl, CSV or parquet with the columns prompt, answer, label "
        "(0 or 1) and, where there is one, reference.",
    )
    labelled_pairs: str | None = Field(
        default=None,
        description="Pairs of answers of which people chose one; the scorer pairwise and "
        "shadow.text.judge_apart need them: columns prompt, first, second, better (1 or 2) and, where there "
        "is one, reference.",
    )
    min_labelled: int = Field(default=50, ge=10, description="Fewer labels never let it gate.")
    min_agreement: Probability = Field(
        default=0.6,
        description="Cohen's kappa with the labels that the lower end of the judge's interval must reach.",
    )
    max_order_bias: Probability = Field(
        default=0.2,
        description="Pairwise: share of pairs whose winner may follow the order of showing, not the text.",
    )


class Scorer(Section):
    """One measure of an answer, with its threshold and its non-regression margin."""

    kind: ScorerKind = Field(description="What is measured; docs/llm-evaluation.md has each.")
    name: str = Field(
        default="",
        pattern=r"^[a-z0-9_]{0,40}$",
        description="The metric's name, where one kind is used twice; default the kind.",
    )
    column: str | None = Field(
        default=None,
        description="Column with what the answer must hold, where it is not the reference "
        "(contains: a text or a list of texts).",
    )
    json_schema: str | None = Field(
        default=None, description="json_schema: file with the JSON Schema, relative to the policy."
    )
    ignore_case: bool = Field(
        default=True, description="exact_match, contains: compare without case, white space and final stops."
    )
    min: float | None = Field(default=None, description="A mean below this fails.")
    max: float | None = Field(default=None, description="A mean above this fails.")
    margin: float | None = Field(
        default=None,
        ge=0,
        description="How much worse than the champion is tolerated (paired interval by prompt), in the "
        "measure's unit; null: not compared. pairwise: how far below one half the share of wins may be.",
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Scorer:
        if (self.kind == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with kind json_schema, and it needs one")
        if self.min is None and self.max is None and self.margin is None:
            raise ValueError(f"{self.metric}: without min, max or margin it decides nothing")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"{self.metric}: nothing is at least {self.min:g} and at most {self.max:g}")
        beyond = [one for one in (self.min, self.max) if one is not None and not 0 <= one <= 1]
        if beyond and self.kind not in LESS_IS_BETTER:
            raise ValueError(f"{self.metric}: scores are between 0 and 1, {beyond[0]:g} is none")
        if self.kind == "pairwise" and self.margin is None:
            raise ValueError("pairwise compares with the champion: it needs a margin")
        return self

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.name or self.kind


class PromptSlice(Section):
    """Prompts that must not regress on their own."""

    column: str = Field(description="Column to slice by; every value is a slice.")
    metric: str = Field(description="Name of the scorer that is checked on the slice.")
    margin: float = Field(ge=0, description="Tolerated regression on the slice.")
    min_prompts: int = Field(default=20, ge=2, description="A smaller slice is INCONCLUSIVE.")
    required: bool = Field(default=False, description="An INCONCLUSIVE slice blocks the release.")


class Generation(Decoding):
    """The offline gate of a language model: candidate against champion on the same prompts."""

    task: Literal["generation"] = Field(description="Answers in words, judged by scorers.")
    data: str = Field(description="Prompts: jsonl, CSV or parquet, a path or an object-store URL.")
    prompt: str = Field(
        default="prompt",
        description="Column with the prompt: a text, or a list of chat messages (role, content).",
    )
    reference: str = Field(
        default="reference", description="Column with the right answer, where there is one."
    )
    api: Literal["chat", "completions"] = Field(default="chat", description="Which path is asked.")
    samples: Annotated[int, Field(ge=1, le=32)] = Field(
        default=1, description="Answers a prompt; more than one needs a temperature above 0."
    )
    concurrency: int = Field(
        default=2, ge=1, description="Prompts in flight, on candidate and champion alike."
    )
    scorers: tuple[Scorer, ...] = Field(min_length=1, description="What is measured; see Scorer.")
    judge: Judge | None = Field(default=None, description="Needed by the scorers judge and pairwise.")
    embeddings: Api | None = Field(
        default=None, description="Any /v1/embeddings, for the scorer similarity and the shadow."
    )
    lexical_similarity: bool = Field(
        default=False,
        description="Without `embeddings`: measure similarity by words (TF-IDF cosine) instead.",
    )
    slices: tuple[PromptSlice, ...] = Field(
        default=(), description="Where it is measured apart; see PromptSlice."
    )
    max_failed: float = Field(
        default=0.0, ge=0, lt=1, description="Share of prompts that the candidate may leave unanswered."
    )
    confidence: Probability = Field(default=0.95, description="Of the paired bootstrap intervals.")
    min_prompts: int = Field(default=50, ge=2, description="Fewer prompts are INCONCLUSIVE.")
    max_prompts: int = Field(default=2000, ge=2, description="More prompts are sampled down (seeded).")

    @model_validator(mode="after")
    def _complete(self) -> Generation:
        kinds = {scorer.kind for scorer in self.scorers}
        names = [scorer.metric for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError("scorers: two have the same name; give one of them a `name`")
        if kinds & {"judge", "pairwise"} and self.judge is None:
            raise ValueError("scorers judge and pairwise need the section `judge`")
        if "judge" in kinds and self.judge is not None and self.judge.labelled is None:
            raise ValueError("the scorer judge needs judge.labelled: answers that people labelled")
        if "pairwise" in kinds and self.judge is not None and self.judge.labelled_pairs is None:
            raise ValueError(
                "the scorer pairwise needs judge.labelled_pairs: pairs of which people chose one"
            )
        if "similarity" in kinds and self.embeddings is None and not self.lexical_similarity:
            raise ValueError(
                "the scorer similarity needs `embeddings`, or lexical_similarity: true to compare words"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples above 1 need a temperature above 0: the answers would all be the same")
        if self.api == "completions" and self.tokens_field != "max_tokens":
            raise ValueError("api completions knows only tokens_field: max_tokens")
        odd = {one.metric for one in self.slices} - set(names)
        if odd:
            raise ValueError(f"slices: {', '.join(sorted(odd))} is no scorer of this evaluation")
        return self
