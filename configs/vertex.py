"""Where and how a policy's endpoint lives on Vertex AI, and what an hour there costs.

Credentials are never here: Google's application default credentials find them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from configs.section import Section

if TYPE_CHECKING:
    from configs.policy import Policy

GcsUri = Annotated[str, Field(pattern=r"^gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]/.+[^/]$")]
Table = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{4,28}[a-z0-9]\.[A-Za-z0-9_]+\.[A-Za-z0-9_-]+$")]


class VertexAutoscale(Section):
    """Replicas of a deployed version; Vertex keeps the metrics at their targets."""

    min_replicas: int = Field(default=1, ge=1, description="Warm replicas of a version, never none.")
    max_replicas: int = Field(default=1, ge=1, description="Most replicas of a version.")
    targets: dict[str, int] = Field(
        default_factory=dict,
        description="Target by metric name, as Vertex's autoscalingMetricSpecs has them: "
        "aiplatform.googleapis.com/prediction/online/accelerator/duty_cycle: 60 (percent), "
        ".../prediction/online/cpu/utilization, or vLLM's waiting requests. Empty: CPU at 60%, Vertex's own.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> VertexAutoscale:
        if self.max_replicas < self.min_replicas:
            raise ValueError("vertex.autoscale: max_replicas must not be less than min_replicas")
        return self


class RequestLog(Section):
    """Vertex's own record of requests and answers in BigQuery: what the shadow replays."""

    table: Table = Field(description="project.dataset.table that Vertex writes.")
    percent: float = Field(default=100, gt=0, le=100, description="Share of requests that is recorded.")
    delay_s: float = Field(
        default=300, ge=0, description="How late Vertex may write; exchanges younger are not read."
    )


class VertexVllm(Section):
    """Serve with a vLLM image in place of Interlock's replica."""

    options: dict[str, str] = Field(
        default_factory=dict,
        description="Options of vLLM's server by name: tensor-parallel-size: 2 becomes "
        "--tensor-parallel-size=2, after `arguments`.",
    )


class Vertex(Section):
    """One endpoint on Vertex AI: a dedicated endpoint whose containers answer any path."""

    project: str = Field(pattern=r"^[a-z][a-z0-9-]{4,28}[a-z0-9]$", description="Google Cloud project.")
    region: str = Field(pattern=r"^[a-z]+-[a-z]+\d+$", description="Region, as us-central1.")
    endpoint_id: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9-]{0,61}[a-z0-9]$",
        description="Id of the Vertex endpoint; interlock-NAME without it.",
    )
    image: str = Field(
        min_length=1, description="Container image in Artifact Registry (serving/Dockerfile, or vLLM's)."
    )
    artifacts: GcsUri = Field(description="Prefix for model artifacts; each is uploaded once.")
    machine_type: str = Field(default="n1-standard-4", description="Machine of a replica.")
    accelerator_type: str | None = Field(
        default=None, pattern=r"^[A-Z][A-Z0-9_]+$", description="GPU, as NVIDIA_L4; null: none."
    )
    accelerator_count: int = Field(
        default=1, ge=1, le=16, description="GPUs of a replica, where there are any."
    )
    spot: bool = Field(default=False, description="Preemptible machines: cheaper, and they may go away.")
    service_account: str | None = Field(default=None, description="Account that the containers run under.")
    autoscale: VertexAutoscale = Field(default_factory=VertexAutoscale, description="How many replicas.")
    request_log: RequestLog | None = Field(default=None, description="Request log; no shadow without it.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="More of the container's variables."
    )
    arguments: tuple[str, ...] = Field(
        default=(),
        description="Arguments of the container; before those of `vllm`, as [python, -m, "
        "vllm.entrypoints.api_server] for Model Garden's image.",
    )
    vllm: VertexVllm | None = Field(default=None, description="Where the image is a vLLM container.")
    metrics_period_s: int = Field(
        default=60, ge=1, description="How often Vertex samples its metrics; a look sees whole periods."
    )
    metrics_delay_s: float = Field(
        default=240, ge=0, description="Until a period's metrics are complete in Cloud Monitoring."
    )
    deploy_timeout_s: float = Field(
        default=3600, gt=0, description="A version not deployed after this fails the deployment."
    )
    change_timeout_s: float = Field(
        default=300, gt=0, description="A change of the split not in effect after this is an error."
    )
    price_per_hour: float | None = Field(
        default=None,
        ge=0,
        description="Dollars an hour of one replica, its machine and GPUs together, for what a release's two "
        "fleets cost; null: unknown.",
    )


def contradictions(policy: Policy) -> list[str]:
    """What of a policy Vertex AI cannot do, each with the key to change."""
    found: list[str] = []
    here = policy.vertex
    if here is None:
        return ["platform: vertex needs a section `vertex:`"]
    if policy.assign_by != "request":
        found.append("assign_by must be `request`: Vertex splits requests, not users")
    if policy.shadow.enabled and here.request_log is None:
        found.append("shadow.enabled needs vertex.request_log: the shadow replays what it recorded")
    if here.request_log is not None and (policy.capture.drop or policy.capture.hash):
        found.append(
            "capture.drop and capture.hash cannot be kept: Vertex records whole requests; "
            "leave vertex.request_log out"
        )
    if policy.canary.lease_s < 3 * here.metrics_period_s:
        found.append("canary.lease_s must be three times vertex.metrics_period_s or more")
    if any(step != int(step) for step in policy.canary.steps):
        found.append("canary.steps must be whole percents: Vertex's split has no finer ones")
    return found
