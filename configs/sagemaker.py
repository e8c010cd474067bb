"""Where and how a policy's endpoint lives on Amazon SageMaker, and what an hour there costs.

Credentials are never here: boto3's own chain finds them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from configs.section import Section

if TYPE_CHECKING:
    from configs.policy import Policy

S3Uri = Annotated[str, Field(pattern=r"^s3://[a-z0-9.-]{3,63}/.+[^/]$")]
Arn = Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$")]
InstanceType = Annotated[str, Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]


class Autoscale(Section):
    """Target tracking by Application Auto Scaling, for every variant alike."""

    min_instances: int = Field(default=1, ge=1, description="Warm instances of a variant, never none.")
    max_instances: int = Field(ge=1, description="Most instances of a variant.")
    target: Literal["concurrency", "invocations"] = Field(
        default="concurrency",
        description="What is kept at `value` an instance: requests at once (they queue beyond what a "
        "model takes at a time; GPUs), or requests a minute.",
    )
    value: float = Field(gt=0, description="The target, an instance.")
    scale_in_cooldown_s: int = Field(default=300, ge=0, description="Rest after removing instances.")
    scale_out_cooldown_s: int = Field(default=60, ge=0, description="Rest after adding instances.")

    @model_validator(mode="after")
    def _ordered(self) -> Autoscale:
        if self.max_instances < self.min_instances:
            raise ValueError("sagemaker.autoscale: max_instances must not be less than min_instances")
        return self


class DataCapture(Section):
    """SageMaker's own record of requests and answers on S3: exact, and what the shadow replays."""

    uri: S3Uri = Field(description="Prefix under which SageMaker writes.")
    percent: int = Field(default=100, ge=1, le=100, description="Share of requests that is recorded.")
    delay_s: float = Field(
        default=600, ge=0, description="How late SageMaker may deliver; exchanges younger are not read."
    )


class VLLM(Section):
    """Serve with a vLLM container in place of Interlock's replica."""

    options: dict[str, str] = Field(
        default_factory=dict,
        description="Options of `vllm serve` by name: tensor-parallel-size: 8 becomes "
        "SM_VLLM_TENSOR_PARALLEL_SIZE=8.",
    )


class SageMaker(Section):
    """One endpoint on SageMaker."""

    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$", description="AWS region.")
    role_arn: Arn = Field(description="Role that the containers run under.")
    image: str = Field(min_length=1, description="Container image in ECR (serving/Dockerfile, or vLLM's).")
    artifacts: S3Uri = Field(description="Prefix for model artifacts; each is uploaded once.")
    instance_types: tuple[InstanceType, ...] = Field(
        min_length=1,
        max_length=5,
        description="Instance type; further ones are taken in this order where capacity is missing.",
    )
    instances: int = Field(default=1, ge=1, le=100, description="Instances of a variant at its start.")
    capture: DataCapture | None = Field(default=None, description="Data capture; no shadow without it.")
    autoscale: Autoscale | None = Field(default=None, description="None: a fixed number of instances.")
    vllm: VLLM | None = Field(default=None, description="Where the image is a vLLM container.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="More of the container's variables."
    )
    alarm_errors_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="SageMaker's own second line: an alarm on a variant's 5xx, upon which it takes an update "
        "of the endpoint back by itself.",
    )
    alarms: tuple[str, ...] = Field(default=(), description="Names of further alarms with that effect.")
    metrics_period_s: Literal[10, 30, 60] = Field(
        default=60, description="How often metrics are published; less than 60 is billed by AWS."
    )
    metrics_delay_s: float = Field(default=120, ge=0, description="Until a period's metrics are complete.")
    update_timeout_s: float = Field(
        default=1800, gt=0, description="An endpoint still updating after this is an error."
    )
    startup_timeout_s: int = Field(
        default=600, ge=60, le=3600, description="A container not healthy after this fails the update."
    )
    subnets: tuple[str, ...] = Field(default=(), description="VPC subnets of the containers.")
    security_groups: tuple[str, ...] = Field(default=(), description="Their security groups.")
    kms_key: str | None = Field(default=None, description="Key for volumes and captures.")
    price_per_hour: dict[InstanceType, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Dollars an hour of one instance by its type, for what a release's two fleets cost; "
        "empty: unknown.",
    )


def contradictions(policy: Policy) -> list[str]:
    """What of a policy SageMaker cannot do, each with the key to change."""
    found: list[str] = []
    here = policy.sagemaker
    if here is None:
        return ["platform: sagemaker needs a section `sagemaker:`"]
    if policy.assign_by != "request":
        found.append("assign_by must be `request`: SageMaker splits requests, not users")
    if policy.shadow.enabled and here.capture is None:
        found.append("shadow.enabled needs sagemaker.capture: the shadow replays what it recorded")
    if here.capture is not None and (policy.capture.drop or policy.capture.hash):
        found.append(
            "capture.drop and capture.hash cannot be kept: SageMaker records whole requests; "
            "leave sagemaker.capture out"
        )
    if policy.canary.lease_s < 3 * here.metrics_period_s:
        found.append("canary.lease_s must be three times sagemaker.metrics_period_s or more")
    if bool(here.subnets) != bool(here.security_groups):
        found.append("sagemaker.subnets and sagemaker.security_groups go together")
    unpriced = sorted(set(here.instance_types) - set(here.price_per_hour))
    if here.price_per_hour and unpriced:
        found.append(
            f"sagemaker.price_per_hour lacks {', '.join(unpriced)}: name every type's price, or none"
        )
    return found
