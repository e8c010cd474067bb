"""What a version's container and machines are told: Interlock's replica, or a vLLM image. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.policy import Policy
from configs.vertex import Vertex
from serving.llm.source import Source

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import DeployedModel, ModelContainerSpec

PORT = 8080


def container(
    here: Vertex, policy: Policy, *, version: str, artifacts: str, weights: Source | None = None
) -> ModelContainerSpec:
    """The container's specification: any path is answered, so one version can be asked directly.

    `artifacts` is the gs:// URI of the version's files, `weights` what a vLLM image serves of them.
    """
    from google.cloud.aiplatform_v1 import EnvVar, ModelContainerSpec, Port, Probe

    variables = _variables(policy, version) if here.vllm is None else {"INTERLOCK_VERSION": version}
    variables |= here.environment
    options = _options(here, policy, artifacts, weights)
    return ModelContainerSpec(
        image_uri=here.image,
        args=[*here.arguments, *(f"--{name}={value}" for name, value in options.items())],
        env=[EnvVar(name=name, value=value) for name, value in variables.items()],
        ports=[Port(container_port=PORT)],
        health_route="/health",
        invoke_route_prefix="/*",
        deployment_timeout={"seconds": int(here.deploy_timeout_s)},
        startup_probe=Probe(
            http_get=Probe.HttpGetAction(path="/health", port=PORT),
            period_seconds=10,
            failure_threshold=max(1, int(policy.replicas.start_timeout_s // 10)),
        ),
    )


def deployed_model(here: Vertex, identifier: str, version: str, model: str) -> DeployedModel:
    """A version's deployment: its machines, GPUs, and how many of them by which metrics."""
    from google.cloud.aiplatform_v1 import (
        AcceleratorType,
        AutoscalingMetricSpec,
        DedicatedResources,
        DeployedModel,
        MachineSpec,
    )

    machine = MachineSpec(machine_type=here.machine_type)
    if here.accelerator_type is not None:
        machine.accelerator_type = AcceleratorType[here.accelerator_type]
        machine.accelerator_count = here.accelerator_count
    targets = [
        AutoscalingMetricSpec(metric_name=metric, target=target)
        for metric, target in here.autoscale.targets.items()
    ]
    return DeployedModel(
        id=identifier,
        model=model,
        display_name=version,
        service_account=here.service_account or "",
        dedicated_resources=DedicatedResources(
            machine_spec=machine,
            min_replica_count=here.autoscale.min_replicas,
            max_replica_count=here.autoscale.max_replicas,
            autoscaling_metric_specs=targets,
            spot=here.spot,
        ),
    )


def _variables(policy: Policy, version: str) -> dict[str, str]:
    """What `serving/replica/container.py` reads."""
    made = {
        "INTERLOCK_ENDPOINT": policy.endpoint,
        "INTERLOCK_VERSION": version,
        "INTERLOCK_URI": f"models:/{policy.model}/{version}",
        "INTERLOCK_CONCURRENCY": str(policy.replicas.concurrency),
        "INTERLOCK_THREADS": str(policy.replicas.threads),
        "INTERLOCK_REQUEST_TIMEOUT_S": f"{policy.replicas.request_timeout_s:g}",
        "INTERLOCK_MAX_BODY_BYTES": str(policy.access.max_body_bytes),
    }
    if policy.replicas.batch is not None:
        made["INTERLOCK_BATCH_MAX_ROWS"] = str(policy.replicas.batch.max_rows)
    return made


def _options(here: Vertex, policy: Policy, artifacts: str, weights: Source | None) -> dict[str, str]:
    """vLLM's options: where to listen, the weights, and what the policy says; its word is the last."""
    if here.vllm is None:
        return {}
    made = {"host": "0.0.0.0", "port": str(PORT), "model": artifacts}  # noqa: S104 (inside its container)
    if weights is not None and weights.revision:
        made |= {"model": weights.weights, "revision": weights.revision}
    elif weights is not None:
        made |= {"model": _below(artifacts, weights.weights)}
        made |= {"tokenizer": _below(artifacts, weights.tokenizer)} if weights.tokenizer else {}
    made["served-model-name"] = policy.serving.served_name or policy.endpoint
    return made | here.vllm.options


def _below(artifacts: str, path: str) -> str:
    return artifacts if path == "." else f"{artifacts}/{path}"
