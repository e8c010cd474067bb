"""What the guards did is in the status, for people and as JSON."""

from __future__ import annotations

import json

import pytest

from configs.settings import Settings
from serving.endpoint import EndpointState, Replica, Slot
from serving.local import LocalEndpoint
from tests.configs.policies import VALID
from tests.flows.cli.conftest import Interlock

SERVING = """\
serving:
  runtime: vllm
  guards:
    output:
      - {check: personal, action: block}
"""


def test_counts_of_guards_are_shown_by_slot(
    interlock: Interlock, cli_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cli_settings.policy_dir / "flights.yaml").write_text(VALID + SERVING)
    replica = Replica("one", "127.0.0.1:1", healthy=True)
    versions = {Slot.BLUE: "1", Slot.GREEN: ""}
    state = EndpointState("flights", None, versions, {Slot.BLUE: (replica,), Slot.GREEN: ()})
    counts = {Slot.BLUE: {"output/personal/block": 3}, Slot.GREEN: {}}
    monkeypatch.setattr(LocalEndpoint, "describe", lambda _self: state)
    monkeypatch.setattr(LocalEndpoint, "guard_counts", lambda _self: counts)
    assert "guards: output/personal/block 3" in interlock("status", "flights").out
    found = json.loads(interlock("status", "flights", "--json").out)
    assert found["guards"] == {"blue": {"output/personal/block": 3}, "green": {}}
