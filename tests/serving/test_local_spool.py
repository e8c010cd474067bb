"""What the policy says of the spool reaches the replica, and the endpoint reads it back."""

from __future__ import annotations

from pathlib import Path

from configs.policy import Policy
from configs.settings import Settings
from serving.capture.recorder import Recorder
from serving.local import LocalEndpoint
from serving.local_replicas import ReplicaProcesses
from serving.replica.server import capture_config
from serving.slots import Slot, SlotFiles
from serving.supervision import Supervisor
from tests.configs.policies import valid_content
from tests.serving.capture.exchanges import record


def test_an_encrypted_spool_is_written_by_the_replica_and_read_by_the_endpoint(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    policy = Policy.model_validate(valid_content() | {"capture": {"spool": {"encrypt": True}}})
    supervisor = Supervisor(settings)
    endpoint = LocalEndpoint("flights", policy, settings, supervisor)
    processes = ReplicaProcesses("flights", policy, settings, supervisor, endpoint._direct, ("true",))
    slot = SlotFiles(settings).reserve("flights", Slot.BLUE, "3", "models:/delays/3", 1)
    config = capture_config(processes._common_spec(slot, slot.replicas[0]))
    assert config is not None
    assert config.spool_dir is not None
    _, cursor = endpoint.exchanges("blue|" + '{"writers":{},"lost":0}', limit=1)
    writing = Recorder(config)
    writing.offer(record(1))
    writing.close()
    assert b"inputs" not in next(config.spool_dir.iterdir()).read_bytes()
    [found], _ = endpoint.exchanges(cursor, limit=10)
    assert found.request == record(1).request
