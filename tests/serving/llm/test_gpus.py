"""GPUs are claimed by locks, refused with reasons. NVML itself is faked: no GPU was at hand."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest

from serving.llm.errors import NoGpuFree
from serving.llm.gpus import claim_gpus


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """nvidia-ml-py's functions, as a machine with two GPUs answers; the processes on each."""
    busy = {0: 0, 1: 0}
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{handle}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "H100")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: [0] * busy[handle])
    return busy


def test_each_replica_gets_its_own_until_none_is_left(two_gpus: dict[int, int], tmp_path: Path) -> None:
    first = claim_gpus("auto", 1, folder=tmp_path)
    second = claim_gpus("gpu", 1, folder=tmp_path)
    assert (first.indexes, second.indexes) == ((0,), (1,))
    with pytest.raises(NoGpuFree, match=r"found 0 of 2.*another replica.*Next: retire a slot"):
        claim_gpus("auto", 1, folder=tmp_path)
    first.release()
    again = claim_gpus("auto", 1, folder=tmp_path)
    assert again.indexes == (0,)
    for claim in (second, again):
        claim.release()


def test_too_few_for_a_tensor_parallel_replica_claims_none(two_gpus: dict[int, int], tmp_path: Path) -> None:
    two_gpus[1] = 1
    with pytest.raises(NoGpuFree, match=r"found 1 of 2: GPU-1 \(H100\) has 1 compute processes"):
        claim_gpus("gpu", 2, folder=tmp_path)
    claim_gpus("gpu", 1, folder=tmp_path).release()  # the failed try holds nothing


def test_the_cpu_where_the_policy_says_so_or_no_driver_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert claim_gpus("auto", 1, folder=tmp_path).indexes == ()
    assert claim_gpus("cpu", 8, folder=tmp_path).indexes == ()
    with pytest.raises(NoGpuFree, match="reports no GPU"):
        claim_gpus("gpu", 1, folder=tmp_path)
