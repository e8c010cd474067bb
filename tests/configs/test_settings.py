"""Settings: where they come from, and whose the servers are."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.settings import Settings


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)


def test_the_file_is_the_default_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().gateway_port == 8700
    monkeypatch.setenv("INTERLOCK_GATEWAY_PORT", "9999")
    assert Settings().gateway_port == 9999
    assert Settings(gateway_port=5).gateway_port == 5


def test_every_setting_of_the_file_is_documented_there() -> None:
    text = Path(__file__).parents[2].joinpath("configs/local.yaml").read_text()
    missing = [name for name in Settings.model_fields if f"{name}:" not in text]
    assert missing == []


@pytest.mark.parametrize(
    ("uri", "is_own"),
    [
        (None, True),
        ("http://127.0.0.1:5500", True),
        ("http://localhost:5500/", True),
        ("http://127.0.0.1:5501", False),
        ("https://mlflow.example.org", False),
    ],
)
def test_a_variable_that_names_our_own_server_does_not_make_it_foreign(
    monkeypatch: pytest.MonkeyPatch, uri: str | None, is_own: bool
) -> None:
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert Settings().starts_mlflow is is_own


def test_the_environment_for_children_describes_the_same_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stack = Settings(
        state_dir=tmp_path / "s", gateway_port=1234, prefect_port=4321, haproxy=Path("/x/haproxy")
    )
    policy_path = stack.policy_path("a")
    for name, value in stack.as_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    child = Settings()
    assert child.state == stack.state
    assert child.policy_path("a") == policy_path
    assert child.gateway_port == 1234
    assert child.haproxy == Path("/x/haproxy")
    assert child.prefect_url == "http://127.0.0.1:4321/api"
    assert child.starts_mlflow
    assert child.starts_prefect


def test_a_deep_state_folder_gets_a_short_run_folder(tmp_path: Path) -> None:
    deep = Settings(state_dir=tmp_path / ("d" * 80))
    assert len(str(deep.run_dir / "supervisor.sock.1234567")) < 100
    assert Settings(state_dir=Path("/short")).run_dir == Path("/short/run")


def test_folders_may_lie_in_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Settings(state_dir=Path("~/state"), policy_dir=Path("~/policies"))
    assert (found.state, found.policy_folder) == (tmp_path / "state", tmp_path / "policies")
    assert found.policy_path("flights") == tmp_path / "policies" / "flights.yaml"
