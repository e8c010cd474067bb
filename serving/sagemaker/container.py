"""The environment of a version's container: Interlock's replica, or a provider's vLLM image.

Pure: what `serving/replica/container.py` reads is written here, and nothing secret is among it.
"""

from __future__ import annotations

from configs.policy import Policy
from configs.sagemaker import SageMaker

MODEL_DIR = "/opt/ml/model"


def environment(name: str, policy: Policy, here: SageMaker, *, version: str, uri: str) -> dict[str, str]:
    """Variables of one container; the policy's own win."""
    if here.vllm is not None:
        made = {vllm_variable(option): value for option, value in here.vllm.options.items()}
        served = {"SM_VLLM_MODEL": MODEL_DIR, "SM_VLLM_SERVED_MODEL_NAME": name}
        made = {"INTERLOCK_VERSION": version, **served, **made}
    else:
        replicas = policy.replicas
        made = {
            "INTERLOCK_ENDPOINT": name,
            "INTERLOCK_VERSION": version,
            "INTERLOCK_URI": uri,
            "INTERLOCK_CONCURRENCY": str(replicas.concurrency),
            "INTERLOCK_THREADS": str(replicas.threads),
            "INTERLOCK_REQUEST_TIMEOUT_S": f"{min(replicas.request_timeout_s, 60):g}",
            "INTERLOCK_MAX_BODY_BYTES": str(policy.access.max_body_bytes),
        }
        if replicas.batch is not None:
            made["INTERLOCK_BATCH_MAX_ROWS"] = str(replicas.batch.max_rows)
    return {**made, **here.environment}


def vllm_variable(option: str) -> str:
    """`tensor-parallel-size` (with or without dashes before it) as SageMaker's vLLM image reads it."""
    return "SM_VLLM_" + option.lstrip("-").replace("-", "_").upper()
