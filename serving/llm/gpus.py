"""Which GPUs a replica gets: claimed by locks that the kernel lets go of when their holder is gone.

A claim is a lock on a file named after the GPU. The launcher hands the open files on to vLLM, so a
GPU stays claimed until both are gone. Other stacks and other programs are seen as compute processes.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.llm.errors import NoGpuFree


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as the driver reports it, counted in PCI order. `busy`: compute processes of anybody."""

    index: int
    uuid: str
    name: str
    busy: int


@dataclass(frozen=True, slots=True)
class Claim:
    """GPUs of one replica, and the open locks that hold them. Empty for a replica on the CPU."""

    indexes: tuple[int, ...] = ()
    locks: tuple[int, ...] = ()

    def release(self) -> None:
        """Let go. Whoever inherited the locks still holds them."""
        for lock in self.locks:
            os.close(lock)


def claim_gpus(device: Literal["auto", "gpu", "cpu"], count: int, *, folder: Path) -> Claim:
    """Claim `count` free GPUs, or none where the policy wants the CPU. Raises `NoGpuFree`."""
    if device == "cpu":
        return Claim()
    known = list_gpus()
    if not known and device == "auto":
        return Claim()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    indexes: list[int] = []
    locks: list[int] = []
    reasons: list[str] = []
    for gpu in known:
        if len(indexes) == count:
            break
        if gpu.busy:
            reasons.append(f"{gpu.uuid} ({gpu.name}) has {gpu.busy} compute processes")
            continue
        lock = os.open(folder / f"{gpu.uuid}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            reasons.append(f"{gpu.uuid} ({gpu.name}) belongs to another replica of this stack")
            continue
        indexes.append(gpu.index)
        locks.append(lock)
    claim = Claim(tuple(indexes), tuple(locks))
    if len(indexes) < count:
        claim.release()
        found = "; ".join(reasons) or "the driver reports no GPU"
        raise NoGpuFree(
            f"Asked for free GPUs: {count}, found {len(indexes)} of {len(known)}: {found}. "
            "Next: retire a slot (both versions of a release run at a time), lower replicas.count or "
            "serving.vllm.gpus_per_replica, or set serving.vllm.device to cpu."
        )
    return claim


def list_gpus() -> list[Gpu]:
    """Every GPU that the driver reports; none where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found: list[Gpu] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
            busy = len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
            found.append(Gpu(index, str(uuid), str(name), busy))
        return found
    finally:
        pynvml.nvmlShutdown()
