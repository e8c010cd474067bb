"""The environment of a version's container: Interlock's replica, or a provider's vLLM image.

Pure: what `serving/replica/container.py` reads is written here, and nothing secret is among it.
"""

from __future__ import annotations

from configs.policy import Policy
from configs.sagemaker import SageMaker
from serving.llm.source import Source

MODEL_DIR = "/opt/ml/model"


def environment(
    name: str, policy: Policy, here: SageMaker, *, version: str, uri: str, weights: Source | None = None
) -> dict[str, str]:
    """Variables of one container; the policy's own win. `weights` are the version's, for a vLLM image."""
    if here.vllm is not None:
        made = {"INTERLOCK_VERSION": version}
        options = _weight_options(weights) | {"served-model-name": policy.serving.served_name or name}
        options |= here.vllm.options
        made |= {vllm_variable(option): value for option, value in options.items()}
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


def _weight_options(weights: Source | None) -> dict[str, str]:
    """What vLLM is told of its weights: a folder below the unpacked version, or a name at the Hub."""
    if weights is None:
        return {"model": MODEL_DIR}
    if weights.revision:
        return {"model": weights.weights, "revision": weights.revision}
    made = {"model": _below(weights.weights)}
    return made | ({"tokenizer": _below(weights.tokenizer)} if weights.tokenizer else {})


def _below(path: str) -> str:
    return MODEL_DIR if path == "." else f"{MODEL_DIR}/{path}"


def vllm_variable(option: str) -> str:
    """`tensor-parallel-size` (with or without dashes before it) as SageMaker's vLLM image reads it."""
    return "SM_VLLM_" + option.lstrip("-").replace("-", "_").upper()
