"""Who a user is, without saying it: the HMAC that stands for a user in logs and records."""

from __future__ import annotations

import hashlib
import hmac

from configs.settings import Settings
from serving.secret_files import Secret, read_or_create

HMAC_CHARS = 32
"""Hexadecimal characters of a user's HMAC (the first 128 of SHA-256's bits)."""


def user_key(settings: Settings) -> bytes:
    """The HMAC key of this stack, made on first use: the secret's text as bytes."""
    return read_or_create(settings, Secret.USER_HMAC).encode()


def user_hmac(key: bytes, tenant: str, user: str) -> str:
    """What the gateway writes for a user of a tenant: `x-interlock-user`, and `user` in its log."""
    return hmac.new(key, f"{tenant}:{user}".encode(), hashlib.sha256).hexdigest()[:HMAC_CHARS]
