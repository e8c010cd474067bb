"""Secrets: made once whoever asks, private, and never repaired in silence."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from configs.settings import Settings
from serving.errors import SetupError
from serving.secret_files import Secret, read_or_create, secret_path


@pytest.mark.parametrize("name", list(Secret))
def test_a_secret_is_made_once_and_kept(stack_settings: Settings, name: Secret) -> None:
    made = read_or_create(stack_settings, name)
    assert read_or_create(stack_settings, name) == made
    path = secret_path(stack_settings, name)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_secrets_have_the_form_that_their_users_need(stack_settings: Settings) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", read_or_create(stack_settings, Secret.USER_HMAC))
    assert len(base64.urlsafe_b64decode(read_or_create(stack_settings, Secret.MLFLOW_FERNET))) == 32
    assert len({read_or_create(stack_settings, name) for name in Secret}) == len(Secret)


def test_many_that_ask_at_once_get_one_secret(stack_settings: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: read_or_create(stack_settings, Secret.WEBHOOK), range(32)))
    assert len(made) == 1


def test_a_secret_that_others_can_read_is_refused(stack_settings: Settings) -> None:
    read_or_create(stack_settings, Secret.WEBHOOK)
    secret_path(stack_settings, Secret.WEBHOOK).chmod(0o640)
    with pytest.raises(SetupError, match="can be read by other users"):
        read_or_create(stack_settings, Secret.WEBHOOK)


def test_an_empty_secret_is_refused(stack_settings: Settings) -> None:
    read_or_create(stack_settings, Secret.WEBHOOK)
    secret_path(stack_settings, Secret.WEBHOOK).write_text("\n")
    with pytest.raises(SetupError, match="is empty"):
        read_or_create(stack_settings, Secret.WEBHOOK)


def test_a_vault_can_give_it_through_the_environment(
    stack_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERLOCK_SECRET_WEBHOOK", "from the vault")
    assert read_or_create(stack_settings, Secret.WEBHOOK) == "from the vault"
    assert not secret_path(stack_settings, Secret.WEBHOOK).exists()
