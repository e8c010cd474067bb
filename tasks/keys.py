"""API keys for the command line, as plain values."""

from __future__ import annotations

from typing import Any

from configs.settings import Settings
from serving.gateway.keys import ApiKey, Keys, digest_of


def create_key(settings: Settings, tenant: str) -> dict[str, Any]:
    """A new key of a tenant; `key` is in this answer only and stored nowhere."""
    keys = Keys(settings)
    key = keys.create(tenant)
    made = next(known for known in keys.every(tenant) if known.sha256 == digest_of(key))
    return {"key": key, **_values(made)}


def revoke_keys(settings: Settings, tenant: str, key_id: str | None) -> list[dict[str, Any]]:
    """End one key of a tenant, or all of them. Raises Refused when there is none such."""
    return [_values(key) for key in Keys(settings).revoke(tenant, key_id)]


def known_keys(settings: Settings, tenant: str | None = None) -> list[dict[str, Any]]:
    """The keys in force, oldest first; never the keys themselves."""
    return [_values(key) for key in Keys(settings).every(tenant)]


def _values(key: ApiKey) -> dict[str, Any]:
    return {"id": key.id, "tenant": key.tenant, "created": key.created}
