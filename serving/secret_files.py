"""Generated secrets: one file each under `secrets_dir`, mode 0600, made on first use.

An environment variable `INTERLOCK_SECRET_<NAME>` wins over the file, for machines whose secrets
come from a vault. A secret file that others can read is refused, not repaired: whoever could
read it may have done so.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from enum import StrEnum
from pathlib import Path

from configs.settings import Settings
from serving.atomic import sync_folder
from serving.errors import SetupError


class Secret(StrEnum):
    """The secrets of a stack; the value is the file's name."""

    WEBHOOK = "webhook.key"
    """Signs MLflow's webhooks to the receiver."""
    USER_HMAC = "user_hmac.key"
    """Turns user ids into pseudonyms in logs and captures: 64 hex characters."""
    SPOOL = "spool.key"
    """Encrypts the spool where a policy asks for it: 64 hex characters."""
    MLFLOW_FERNET = "mlflow_fernet.key"
    """Encrypts webhook secrets in MLflow's database; losing it loses the webhooks."""


def secret_path(settings: Settings, name: Secret) -> Path:
    """Where the secret's file is."""
    return settings.secrets_dir / name.value


def read_or_create(settings: Settings, name: Secret) -> str:
    """The secret's text, generated where it does not exist yet. Safe to call from many processes.

    Raises SetupError for a file that is empty or that other users can read.
    """
    from_environment = os.environ.get(f"INTERLOCK_SECRET_{name.name}")
    if from_environment:
        return from_environment
    path = secret_path(settings, name)
    if not path.exists():
        _create(path, _generate(name))
    return read_private(path)


def _generate(name: Secret) -> str:
    if name is Secret.MLFLOW_FERNET:
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex(32)


def _create(path: Path, text: str) -> None:
    """Write whole, then link into place: the first of several writers wins and nobody reads half."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)
    finally:
        fresh.unlink()
        sync_folder(path.parent)


def read_private(path: Path) -> str:
    """A secret file's text. Raises SetupError where it is empty or other users can read it."""
    if path.stat().st_mode & 0o077:
        raise SetupError(
            f"{path} can be read by other users (mode {path.stat().st_mode & 0o777:o}). "
            f"Next: make a new secret (interlock's own: delete the file and run 'interlock up'), mode 0600"
        )
    text = path.read_text().strip()
    if not text:
        raise SetupError(f"{path} is empty. Next: delete it and run 'interlock up', which makes a new one")
    return text
