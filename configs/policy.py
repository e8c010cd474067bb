"""The policy: what the operator wants for one endpoint, in one YAML file.

Every key is documented by its field's description (`interlock policy-keys` prints them all).
Unknown keys are refused. Shares are written in percent here, because that is how operators
say them; the code below `configs/` speaks fractions in [0, 1].
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from configs import consistency, sagemaker, vertex
from configs.approval import Approval
from configs.drift import Drift
from configs.drill import Drill
from configs.evaluation import Evaluation
from configs.generation import Generation
from configs.guards import PersonalKind
from configs.labels import Labels
from configs.load_test import LoadTest
from configs.measures import Measure, MeasureName, Quality
from configs.notify import Notify
from configs.prompts import Prompt
from configs.retention import Retention
from configs.sagemaker import SageMaker
from configs.section import LatencyBudget, Name, Probability, Section
from configs.serving_runtime import Serving
from configs.text_shadow import TextShadow
from configs.vertex import Vertex
from configs.watch import Watch

LOOKS_MAX = 50_000
"""Looks that a canary keeps, each some kilobytes: the bound of what a release leaves in the journal."""
_REPLICAS_FEW = 3
_FIELDS_OF_WORDS = frozenset(
    {"messages", "message", "content", "text", "prompt", "input", "choices", "arguments"}
)


class Batch(Section):
    """Joins requests that wait while a prediction runs. Only for models whose rows are independent."""

    max_rows: int = Field(default=64, ge=1, description="Most rows in one joined prediction.")


class Replicas(Section):
    """How many processes serve a version, and how much each takes."""

    count: int = Field(default=1, ge=1, le=64, description="Serving processes a slot.")
    concurrency: int = Field(default=4, ge=1, description="Predictions that one replica runs at a time.")
    threads: int = Field(default=1, ge=1, description="Numeric-library threads of one replica (OMP, BLAS).")
    gateway_limit: int | None = Field(
        default=None,
        ge=1,
        description="Requests that the gateway gives a replica at once; without it `concurrency` (two full "
        "batches with `batch`), or what the load test measured where that is more.",
    )
    queue: int = Field(
        default=64, ge=0, description="Requests that may wait a slot before the gateway answers 503."
    )
    request_timeout_s: float = Field(
        default=30, gt=0, description="A request without an answer after this is an error."
    )
    retry_unanswered: bool | None = Field(
        default=None,
        description="Ask another replica when one dies before it answers; off where requests have effects. "
        "Default: on for pyfunc, off for language models.",
    )
    start_timeout_s: float = Field(
        default=120, gt=0, description="A replica not healthy after this fails the deployment."
    )
    start_early: bool = Field(
        default=False,
        description="Start the candidate while it is evaluated: faster, but the version that is kept warm "
        "for a rollback goes before the candidate has passed, and from then on the watch alerts where it "
        "would have gone back. Language models that are judged by their answers always start first.",
    )
    batch: Batch | None = Field(default=None, description="Join waiting requests (rows must be independent).")


class Access(Section):
    """Who may call the endpoint, and how much."""

    public: bool = Field(default=False, description="Answer without a credential. Never the default.")
    rate_per_s: int = Field(default=500, ge=1, description="Admitted requests a second and tenant.")
    max_body_bytes: int = Field(default=1_048_576, ge=1, description="Larger bodies get 413.")


class Spool(Section):
    """The short-lived local copy of exact requests that feeds the shadow (mode 0600, never uploaded)."""

    enabled: bool = Field(
        default=True, description="Without a spool there is no shadow on the local platform."
    )
    max_age_s: float = Field(default=900, gt=0, le=900, description="Segments older than this are deleted.")
    encrypt: bool = Field(
        default=False, description="AES-256-GCM, with the secret INTERLOCK_SECRET_SPOOL or secrets/spool.key."
    )
    personal: bool = Field(
        default=False,
        description="capture.personal holds for the spool too; the shadow then asks what was redacted.",
    )


class Capture(Section):
    """The durable record of requests and answers."""

    sample: float = Field(default=1.0, ge=0, le=1, description="Share of requests that is recorded.")
    drop: tuple[str, ...] = Field(default=(), description="Input columns that are never recorded.")
    hash: tuple[str, ...] = Field(default=(), description="Input columns recorded as HMAC only.")
    personal: tuple[PersonalKind, ...] = Field(
        default=(),
        description="Personal data taken out of every text before it is recorded: <email> stands there then.",
    )
    spool: Spool = Field(default_factory=Spool, description="The shadow's source.")

    @property
    def keeps_words(self) -> bool:
        """Whether conversations may be recorded in words: none of their fields is dropped or hashed."""
        return self.sample > 0 and _FIELDS_OF_WORDS.isdisjoint((*self.drop, *self.hash))


class Shadow(Section):
    """The candidate answers copies of live requests; no user sees it."""

    enabled: bool = Field(default=True, description="Without it, `reason` must say why.")
    reason: str | None = Field(default=None, description="Why there is no shadow.")
    score_tolerance: float | None = Field(
        default=None,
        ge=0,
        description="Outputs further apart than this disagree (numbers and scores). Required without `text`.",
    )
    text: TextShadow | None = Field(default=None, description="Answers are words, compared as such.")
    max_disagreement: Probability = Field(
        default=0.2, description="Budget: share of pairs whose outputs may disagree."
    )
    min_pairs: int = Field(default=1000, ge=1, description="Fewer pairs never pass.")
    concurrency: int = Field(default=2, ge=1, description="Replayed requests in flight.")
    rate_per_s: float = Field(default=50, gt=0, description="Most replayed requests a second.")
    timeout_s: float = Field(default=3600, gt=0, description="Without a verdict after this a human is asked.")
    alpha: Probability = Field(default=0.01, description="False-alarm bound of the shadow's tests.")

    @model_validator(mode="after")
    def _complete(self) -> Shadow:
        if self.enabled and self.score_tolerance is None and self.text is None:
            raise ValueError("shadow.score_tolerance has no default: say how far apart two outputs may be")
        if not self.enabled and not self.reason:
            raise ValueError("shadow.enabled is false: shadow.reason must say why")
        return self


class Window(Section):
    """The closed first window of a user: all that this user contributes to a step's evidence."""

    requests: int = Field(default=10, ge=1, description="The window closes after this many requests ...")
    seconds: float = Field(
        default=30, gt=0, description="... or this long after the first, whichever comes first."
    )


class Errors(Section):
    """Errors of the candidate against the champion's, as probabilities."""

    tolerance: float = Field(default=0.0, ge=0, lt=1, description="Excess that never rolls back.")
    margin: float = Field(
        default=0.01, gt=0, lt=1, description="Excess that must be excluded before promotion."
    )


class Latency(Section):
    """Service time of the candidate against the champion's, as ratios."""

    tolerance: float = Field(
        default=0.1, ge=0, description="Slower by this factor minus one never rolls back."
    )
    margin: float = Field(default=0.2, gt=0, description="Slower by more must be excluded before promotion.")
    quantiles: tuple[Literal["p50", "p90", "p95", "p99"], ...] = Field(
        default=("p50", "p95", "p99"),
        min_length=1,
        description="Quantiles whose non-inferiority promotion requires.",
    )
    budget_ms: LatencyBudget = Field(default_factory=LatencyBudget, description="Absolute end-to-end budget.")


class Canary(Section):
    """The candidate answers a share of live requests; the last step is the soak."""

    steps: tuple[float, ...] = Field(
        default=(5, 25, 50, 95), min_length=1, description="Shares in percent, rising; at most 95."
    )
    bake_s: float = Field(default=300, ge=0, description="Least time at each step.")
    soak_s: float = Field(default=1800, ge=0, description="Least time at the last step.")
    min_units: int = Field(default=50, ge=1, description="Candidate units seen at a step before the next.")
    look_every_s: float = Field(default=2, gt=0, description="Time between looks; looking is free.")
    settle_s: float = Field(default=2, ge=0, description="Requests younger than this are not looked at yet.")
    warm_up_s: float = Field(
        default=5,
        ge=0,
        description="Times of requests that come this soon after a share was first granted are no evidence "
        "against either version (caches fill); their errors are.",
    )
    lease_s: float = Field(
        default=30, ge=3, description="A share that is not renewed for this long returns to zero."
    )
    ask_after_s: float = Field(
        default=3600, gt=0, description="A step on HOLD for this long asks a human; it never passes."
    )
    false_rollback: Probability = Field(
        default=0.01, description="Bound on rolling a good version back, per release."
    )
    false_promote: Probability = Field(
        default=0.05, description="Bound on promoting a version worse than a margin."
    )
    error_budget: float | None = Field(
        default=None,
        gt=0,
        description="Most excess errors (requests) that a step may cost at worst: upper bound of the excess "
        "x share x traffic x bake. Steps that fit are skipped over; without it the ramp goes step by step.",
    )
    window: Window = Field(default_factory=Window, description="The unit of evidence with assign_by: user.")
    errors: Errors = Field(default_factory=Errors, description="Error evidence.")
    latency: Latency = Field(default_factory=Latency, description="Latency evidence.")
    measures: dict[MeasureName, Measure] = Field(
        default_factory=dict, description="Evidence on what else the platform reports of a request, by name."
    )
    quality: Quality | None = Field(
        default=None, description="Evidence from labels that arrive during the canary; none without it."
    )

    @model_validator(mode="after")
    def _rising(self) -> Canary:
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not rising or self.steps[0] <= 0 or self.steps[-1] > 95:
            raise ValueError(
                "canary.steps must rise, start above 0 and end at 95 or less (the rest is the control)"
            )
        if self.look_every_s * 3 > self.lease_s:
            raise ValueError(
                "canary.lease_s must be at least three times canary.look_every_s, or the lease runs out"
            )
        seconds = self.bake_s * (len(self.steps) - 1) + self.soak_s
        if seconds / self.look_every_s > LOOKS_MAX:
            raise ValueError(
                f"canary.look_every_s must be at least {seconds / LOOKS_MAX:.3g} for bakes and soak of "
                f"{seconds:g} s: a release keeps {LOOKS_MAX} looks"
            )
        return self


class Policy(Section):
    """All that Interlock knows about one endpoint's releases."""

    endpoint: Name = Field(description="The name clients call.")
    model: str = Field(min_length=1, description="Registered model in MLflow.")
    owner: str = Field(min_length=1, description="Who is told.")
    platform: Literal["local", "sagemaker", "vertex"] = Field(
        default="local", description="Where the endpoint lives; all but `local` have a section of their own."
    )
    sagemaker: SageMaker | None = Field(default=None, description="Where `platform` is sagemaker.")
    vertex: Vertex | None = Field(default=None, description="Where `platform` is vertex.")
    prompt: Prompt | None = Field(
        default=None,
        description="The prompt that a language model answers under, released like the model.",
    )
    assign_by: Literal["user", "request"] = Field(
        default="user", description="What is randomised, hence the unit of evidence."
    )
    replicas: Replicas = Field(default_factory=Replicas, description="Serving processes.")
    serving: Serving = Field(default_factory=Serving, description="What a replica runs.")
    access: Access = Field(default_factory=Access, description="Credentials and limits.")
    capture: Capture = Field(default_factory=Capture, description="What is recorded.")
    evaluation: Evaluation | Generation = Field(
        discriminator="task", description="The offline gate; its keys follow `task`."
    )
    shadow: Shadow = Field(description="The shadow stage.")
    approval: Approval = Field(default_factory=Approval, description="The human gate.")
    canary: Canary = Field(default_factory=Canary, description="The ramp.")
    notify: Notify = Field(default_factory=Notify, description="Whom alerts reach, and how often.")
    drift: Drift | None = Field(
        default=None, description="Drift checks after the release, on platform local; none without it."
    )
    drill: Drill | None = Field(default=None, description="Makes this a drill endpoint; none without it.")
    labels: Labels | None = Field(
        default=None, description="The truth that arrives later, on platform local; none without it."
    )
    load_test: LoadTest | None = Field(
        default=None, description="What a version must bear in staging; none without it."
    )
    environments: dict[Literal["staging", "development"], dict[str, Any]] = Field(
        default_factory=dict,
        description="What differs from this file elsewhere; with `staging` every release passes there first.",
    )
    keep_previous_s: float = Field(
        default=3600, ge=0, description="The old champion stays warm this long after promotion."
    )
    retention: Retention = Field(default_factory=Retention, description="How long records are kept.")
    watch: Watch = Field(default_factory=Watch, description="After the promotion.")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but weakens the evidence, or costs time, in words."""
        found: list[str] = []
        if self.serving.is_llm and self.platform == "local" and not self.serving.vllm.tells_gauges:
            found.append(
                "serving.vllm has disable-log-stats: a replica that stops cannot tell when its streams have "
                f"ended, and takes serving.stream_timeout_s ({self.serving.stream_timeout_s:g} s)"
            )
        count = {
            "local": _REPLICAS_FEW,  # both versions run on the same machine: its noise is shared
            "sagemaker": self.sagemaker.instances if self.sagemaker else 0,
            "vertex": self.vertex.autoscale.min_replicas if self.vertex else 0,
        }[self.platform]
        if count < _REPLICAS_FEW:
            found.append(
                f"only {count} of its own hosts for each version: a noisy host looks like a bad version; "
                f"{_REPLICAS_FEW} or more average it out ({self.platform})"
            )
        return tuple(found)

    @model_validator(mode="after")
    def _possible(self) -> Policy:
        rules = {
            "local": consistency.contradictions,
            "sagemaker": sagemaker.contradictions,
            "vertex": vertex.contradictions,
        }
        found = [*rules[self.platform](self), *consistency.lacks(self)]
        if found:
            raise ValueError("\n".join(found))
        return self
