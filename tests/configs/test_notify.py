"""Addresses are secrets: a policy names them and never contains them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.errors import PolicyInvalid
from configs.loading import load_policy
from tests.tasks.test_transitions import POLICY


def problems(folder: Path, **notify: object) -> str:
    path = folder / "flights.yaml"
    path.write_text(yaml.safe_dump(POLICY.model_dump(mode="json", exclude={"notify"}) | {"notify": notify}))
    with pytest.raises(PolicyInvalid) as refused:
        load_policy(path)
    return str(refused.value)


def test_a_url_in_a_policy_is_refused_and_not_repeated(tmp_path: Path) -> None:
    said = problems(tmp_path, critical=["slack://TokenA/TokenB/TokenC"])
    assert "name where it is, env:VARIABLE or file:PATH" in said
    assert "TokenA" not in said


@pytest.mark.parametrize("text", ["{nobody}", "{was.__class__}", "{was:d}", "{was:{foo}}", "{", "{0}"])
def test_a_communication_that_could_not_be_filled_in_is_refused_at_once(tmp_path: Path, text: str) -> None:
    assert "rollback.text" in problems(tmp_path, rollback={"text": text})
