"""How vLLM is started: its command line and what it finds in its environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from configs.serving_runtime import Vllm
from serving.llm.gpus import VISIBLE, Claim
from serving.llm.source import Source
from serving.llm.spec import LlmSpec

MIDDLEWARE = "serving.capture.generation.GenerationCapture"
_MODULE = ("-m", "vllm.entrypoints.openai.api_server")
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "SSL_CERT_FILE")
_KEPT_PREFIXES = (
    "VLLM_",
    "HF_",
    "NCCL_",
    "TORCH_",
    "NVIDIA_",
    "http_",
    "https_",
    "HTTP_",
    "HTTPS_",
    "no_",
    "NO_",
)


def vllm_command(spec: LlmSpec, source: Source, claim: Claim) -> list[str]:
    """The whole command line."""
    vllm = spec.serving.vllm
    base = list(vllm.command) or [str(spec.environment / "bin" / "python"), *_MODULE]
    options: dict[str, str | int | float | bool] = {
        "model": source.weights,
        "served-model-name": spec.served_name,
        "host": spec.host,
        "port": spec.port,
        "middleware": MIDDLEWARE,
        "tensor-parallel-size": vllm.tensor_parallel,
        "dtype": vllm.dtype,
        "disable-uvicorn-access-log": True,
    }
    if claim.devices:
        options["gpu-memory-utilization"] = vllm.gpu_memory
    optional = {
        "revision": source.revision,
        "tokenizer": source.tokenizer,
        "max-model-len": vllm.max_length,
        "quantization": vllm.quantization,
    }
    options |= {name: value for name, value in optional.items() if value}
    if vllm.lora:
        options["enable-lora"] = True
    options |= vllm.options  # the operator's word is last
    return base + _flags(options) + _adapters(vllm)


def vllm_environment(spec: LlmSpec, claim: Claim, environ: Mapping[str, str]) -> dict[str, str]:
    """What vLLM finds: nothing of ours but the capture, and its GPUs only.

    No secret but HF_TOKEN, by which it fetches weights from the Hub. Not VLLM_API_KEY: with it vLLM would
    refuse the gateway, which has checked the client's key.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if (name in _KEPT or name.startswith(_KEPT_PREFIXES)) and name != "VLLM_API_KEY"
    }
    kept |= {
        "PYTHONPATH": str(_path_with_capture(spec.state_dir)),
        "INTERLOCK_CAPTURE": f"@{spec.capture_file}",
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    kept[VISIBLE] = ",".join(claim.devices)  # none on the CPU: a build for GPUs would take them all
    if claim.devices:
        return kept | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    kept.setdefault("VLLM_CPU_KVCACHE_SPACE", str(spec.serving.vllm.kv_cache_gib))
    kept.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return kept | {"OMP_NUM_THREADS": str(spec.threads)}


def _path_with_capture(state_dir: Path) -> Path:
    """A folder from which only `serving` can be imported: our other packages are not vLLM's business."""
    import serving

    folder = state_dir / "llm" / "path"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    link, target = folder / "serving", Path(str(serving.__file__)).parent
    if not link.exists() or link.resolve() != target:
        staging = folder / f".serving.{os.getpid()}"
        staging.unlink(missing_ok=True)
        staging.symlink_to(target)
        staging.replace(link)
    return folder


def _flags(options: Mapping[str, str | int | float | bool]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False:
            flags += [f"--{name}", str(value)]
    return flags


def _adapters(vllm: Vllm) -> list[str]:
    if not vllm.lora:
        return []
    return ["--lora-modules", *(json.dumps({"name": n, "path": p}) for n, p in sorted(vllm.lora.items()))]
