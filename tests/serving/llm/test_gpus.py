"""GPUs are claimed by locks, refused with reasons. NVML itself is faked: no GPU was at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pynvml
import pytest

from serving.llm.errors import NoGpuFree
from serving.llm.gpus import Claim, claim_gpus

Device = Literal["auto", "gpu", "cpu"]


def claim(device: Device, count: int, folder: Path, **environ: str) -> Claim:
    return claim_gpus(device, count, folder=folder, environ=environ)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[int | str, int]:
    """nvidia-ml-py's functions, as a machine with two GPUs answers; the processes on each."""
    busy: dict[int | str, int] = {0: 0, 1: 0, "MIG-5": 0}
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{handle}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "H100")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [0] * busy[handle])
    return busy


def test_each_replica_gets_its_own_until_none_is_left(two_gpus: dict[int | str, int], tmp_path: Path) -> None:
    first = claim("auto", 1, tmp_path)
    second = claim("gpu", 1, tmp_path)
    assert (first.devices, second.devices) == (("0",), ("1",))
    with pytest.raises(NoGpuFree, match=r"found 0 of 2.*another replica.*Next: retire a slot"):
        claim("auto", 1, tmp_path)
    first.release()
    again = claim("auto", 1, tmp_path)
    assert again.devices == ("0",)
    for held in (second, again):
        held.release()


def test_too_few_for_a_tensor_parallel_replica_claims_none(
    two_gpus: dict[int | str, int], tmp_path: Path
) -> None:
    two_gpus[1] = 1
    with pytest.raises(NoGpuFree, match=r"found 1 of 2: GPU-1 \(H100\) has 1 compute processes"):
        claim("gpu", 2, tmp_path)
    claim("gpu", 1, tmp_path).release()  # the failed try holds nothing


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        ("GPU-1", ("1",)),
        ("0, 0", ("0",)),
        ("1,7,0", ("1",)),
        ("MIG-5", ("MIG-5",)),
    ],
)
def test_only_gpus_that_this_process_may_use_are_claimed(
    two_gpus: dict[int | str, int], tmp_path: Path, visible: str, devices: tuple[str, ...]
) -> None:
    held = claim("gpu", len(devices), tmp_path, CUDA_VISIBLE_DEVICES=visible)
    assert held.devices == devices
    with pytest.raises(NoGpuFree, match=f"CUDA_VISIBLE_DEVICES is '{visible}'"):
        claim("gpu", 1, tmp_path, CUDA_VISIBLE_DEVICES=visible)
    held.release()


def test_hidden_gpus_mean_the_cpu_and_that_is_said(
    two_gpus: dict[int | str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for hidden in ("", "-1"):
        assert claim("auto", 1, tmp_path, CUDA_VISIBLE_DEVICES=hidden).devices == ()
        assert "vLLM gets the CPU: CUDA_VISIBLE_DEVICES hides all 2 GPUs" in caplog.messages[-1]
        with pytest.raises(NoGpuFree, match=r"found 0 of 0: CUDA_VISIBLE_DEVICES hides all 2 GPUs"):
            claim("gpu", 1, tmp_path, CUDA_VISIBLE_DEVICES=hidden)


def test_a_gpu_that_the_driver_does_not_tell_about_is_not_used(
    two_gpus: dict[int | str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def processes(handle: int) -> list[int]:
        if handle == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return []

    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", processes)
    held = claim("gpu", 1, tmp_path)
    assert held.devices == ("1",)
    held.release()
    with pytest.raises(NoGpuFree, match=r"found 1 of 2: GPU-0 \(H100\) cannot be read \(Not Supported\)"):
        claim("auto", 2, tmp_path)

    def no_handle(index: int) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", no_handle)
    with pytest.raises(NoGpuFree, match=r"GPU 1 \(unknown\) cannot be read"):
        claim("auto", 1, tmp_path)

    def no_count() -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", no_count)
    with pytest.raises(NoGpuFree, match=r"the driver does not tell its GPUs \(Unknown Error\)"):
        claim("gpu", 1, tmp_path)


def test_the_cpu_where_the_policy_says_so_or_no_driver_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert claim("auto", 1, tmp_path).devices == ()
    (said,) = caplog.messages
    assert said.startswith("vLLM gets the CPU: the driver reports no GPU (NVML Shared Library Not Found)")
    assert claim("cpu", 8, tmp_path).devices == ()
    assert len(caplog.messages) == 1, "where the policy says so there is nothing to warn of"
    with pytest.raises(NoGpuFree, match="reports no GPU"):
        claim("gpu", 1, tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert claim("auto", 1, tmp_path).devices == ()
    assert "nvidia-ml-py is not installed" in caplog.messages[-1]
