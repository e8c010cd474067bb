"""What vLLM finds in its environment."""

from __future__ import annotations

from pathlib import Path

from configs.policy import Policy
from configs.settings import Settings
from serving.direct import DirectClient
from serving.endpoint import Slot
from serving.llm.command import vllm_environment
from serving.llm.gpus import Claim
from serving.llm.spec import LlmSpec
from serving.local_replicas import ReplicaProcesses
from serving.slots import SlotRecord, SlotReplica
from serving.supervision import Supervisor
from tests.configs.policies import valid_content

THEIRS = {"HF_TOKEN": "hub", "HF_HOME": "/cache", "VLLM_LOGGING_LEVEL": "INFO", "PATH": "/bin"}
OURS = {
    "VLLM_API_KEY": "k",
    "OPENAI_API_KEY": "k",
    "INTERLOCK_SECRET_SPOOL": "s",
    "AWS_SECRET_ACCESS_KEY": "s",
}


def test_the_hubs_token_passes_and_no_other_secret(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    policy = Policy.model_validate(valid_content() | {"serving": {"runtime": "vllm"}})
    direct = DirectClient("127.0.0.1")
    processes = ReplicaProcesses("chat", policy, settings, Supervisor(settings), direct, ("unused",))
    record = SlotRecord("chat", Slot.BLUE, "1", "models:/m-1", ())
    spec = processes._spec(record, SlotReplica("replica-chat-blue-1", 1), 0)
    assert isinstance(spec, LlmSpec)
    found = vllm_environment(spec, Claim(()), THEIRS | OURS)
    assert found.items() >= THEIRS.items()
    assert not found.keys() & OURS.keys()
    assert found["CUDA_VISIBLE_DEVICES"] == "", "a build for GPUs would take whatever it sees"
    given = vllm_environment(spec, Claim(("1", "MIG-5")), THEIRS | {"CUDA_VISIBLE_DEVICES": "0,1,MIG-5"})
    assert (given["CUDA_VISIBLE_DEVICES"], given["CUDA_DEVICE_ORDER"]) == ("1,MIG-5", "PCI_BUS_ID")
