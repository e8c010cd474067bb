"""Which GPUs a replica gets: claimed by locks that the kernel lets go of when their holder is gone.

A claim is a lock on a file named after the GPU. The launcher hands the open files on to vLLM, so a
GPU stays claimed until both are gone. Other stacks and other programs are seen as compute processes.
Only GPUs that this process itself may use are claimed: Slurm and shared hosts say so in
CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.llm.errors import NoGpuFree

logger = logging.getLogger("interlock.llm")

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU. `trouble` says why it cannot be used, "" where it can.

    `device` is what CUDA_VISIBLE_DEVICES calls it: its number in PCI order, or the instance's UUID.
    """

    device: str
    uuid: str
    name: str
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """GPUs of one replica, and the open locks that hold them. Empty for a replica on the CPU."""

    devices: tuple[str, ...] = ()
    locks: tuple[int, ...] = ()

    def release(self) -> None:
        """Let go. Whoever inherited the locks still holds them."""
        for lock in self.locks:
            os.close(lock)


def claim_gpus(
    device: Literal["auto", "gpu", "cpu"], count: int, *, folder: Path, environ: Mapping[str, str]
) -> Claim:
    """Claim `count` free GPUs, or none where the policy wants the CPU. Raises `NoGpuFree`."""
    if device == "cpu":
        return Claim()
    known, why_none = list_gpus(environ)
    if not known and device == "auto":
        logger.warning(
            "vLLM gets the CPU: %s. Next: serving.vllm.device cpu, if that is right, or gpu", why_none
        )
        return Claim()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    devices: list[str] = []
    locks: list[int] = []
    reasons: list[str] = [] if known else [why_none]
    for gpu in known:
        if len(devices) == count:
            break
        if gpu.trouble:
            reasons.append(f"{gpu.uuid} ({gpu.name}) {gpu.trouble}")
            continue
        name = f"{gpu.uuid.replace('/', '-')}.lock"
        lock = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            reasons.append(f"{gpu.uuid} ({gpu.name}) belongs to another replica of this stack")
            continue
        devices.append(gpu.device)
        locks.append(lock)
    claim = Claim(tuple(devices), tuple(locks))
    if len(devices) < count:
        claim.release()
        if VISIBLE in environ:
            reasons.append(f"{VISIBLE} is {environ[VISIBLE]!r}")
        found = "; ".join(reasons) or "there are no more"
        raise NoGpuFree(
            f"Asked for free GPUs: {count}, found {len(devices)} of {len(known)}: {found}. "
            "Next: retire a slot (both versions of a release run at a time), lower replicas.count or "
            "serving.vllm.gpus_per_replica, or set serving.vllm.device to cpu."
        )
    return claim


def list_gpus(environ: Mapping[str, str]) -> tuple[list[Gpu], str]:
    """The GPUs that this process may use; where there are none, why."""
    try:
        import pynvml
    except ImportError:
        return [], "nvidia-ml-py is not installed, so no GPU can be seen"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"the driver reports no GPU ({error})"
    try:
        every = [
            _read(str(index), lambda index=index: pynvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError as error:
        return [], f"the driver does not tell its GPUs ({error})"
    else:
        if not every:
            return [], "the driver reports no GPU"
        told = environ.get(VISIBLE)
        allowed = every if told is None else _allowed(every, told)
        return allowed, "" if allowed else f"{VISIBLE} hides all {len(every)} GPUs"
    finally:
        pynvml.nvmlShutdown()


def _allowed(every: list[Gpu], told: str) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names: by number, by (the beginning of) a UUID, or instances of MIG.

    As CUDA reads it: what follows a name that fits no GPU is hidden.
    """
    import pynvml

    found: list[Gpu] = []
    for entry in (part.strip() for part in told.split(",")):
        if entry.startswith("MIG-"):
            gpu = _read(entry, lambda entry=entry: pynvml.nvmlDeviceGetHandleByUUID(entry))
        else:
            by_uuid = entry.startswith("GPU-")
            gpu = next(
                (one for one in every if entry == one.device or (by_uuid and one.uuid.startswith(entry))),
                None,
            )
        if gpu is None:
            break
        if gpu not in found:
            found.append(gpu)
    return found


def _read(device: str, handle_of: Callable[[], object]) -> Gpu:
    """One GPU as the driver reports it. What it does not tell makes it unusable: somebody may be on it."""
    import pynvml

    uuid, name = device if device.startswith("MIG-") else f"GPU {device}", "unknown"
    try:
        handle = handle_of()
        if not device.startswith("MIG-"):
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        name = str(pynvml.nvmlDeviceGetName(handle))
        busy = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError as error:
        return Gpu(device, uuid, name, f"cannot be read ({error})")
    return Gpu(device, uuid, name, f"has {busy} compute processes" if busy else "")
