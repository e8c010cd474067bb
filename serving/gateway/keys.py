"""API keys: made and revoked while the gateway runs, kept as SHA-256 only.

A key has 256 random bits, so a plain hash suffices: there is nothing to guess. The gateway looks
the hash up in `keys.map`; `keys.json` beside it says what a person wants to know.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.settings import Settings
from serving.atomic import timed_lock, write_private
from serving.errors import Refused, SetupError
from serving.gateway.maps import KEYS_MAP, write_map
from serving.gateway.places import gateway_runtime

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LOCK_WAIT_S = 30.0
_ID_CHARS = 12
PREFIX = "ilk_"
"""Begins every key, so that secret scanners can know it. A key has no dot: a token has two."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key as it is kept. `id` is the beginning of its hash; `created` in seconds since the epoch."""

    id: str
    tenant: str
    created: float
    sha256: str


def digest_of(key: str) -> str:
    """The hash under which a key is kept: hexadecimal in capitals, as HAProxy writes it."""
    return hashlib.sha256(key.encode()).hexdigest().upper()


class Keys:
    """The API keys of one gateway."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self._dir = settings.gateway_dir
        self._runtime = gateway_runtime(settings)
        self._clock = clock

    def create(self, tenant: str) -> str:
        """A new key of a tenant, valid at once. It is returned here and can never be shown again."""
        if not _TENANT.fullmatch(tenant):
            raise Refused(f"tenant {tenant!r} may have letters, digits and ._- only, at most 64 in all")
        key = PREFIX + secrets.token_urlsafe(32)
        digest = digest_of(key)
        with timed_lock(self._lock, wait_s=_LOCK_WAIT_S):
            made = ApiKey(digest[:_ID_CHARS], tenant, self._clock(), digest)
            self._save([*self.every(), made])
            if self._runtime.is_up():
                self._runtime.set_map(KEYS_MAP, digest, tenant)
        return key

    def revoke(self, tenant: str, key_id: str | None = None) -> list[ApiKey]:
        """End one key of a tenant, or all; a request that comes after this gets 401.

        Raises Refused when there is none such.
        """
        with timed_lock(self._lock, wait_s=_LOCK_WAIT_S):
            known = self.every()
            ended = [key for key in known if key.tenant == tenant and key_id in (None, key.id)]
            if not ended:
                which = f"key {key_id}" if key_id else "keys"
                raise Refused(f"tenant {tenant} has no {which}. Next: interlock keys list")
            self._save([key for key in known if key not in ended])
            if self._runtime.is_up():
                for key in ended:
                    self._runtime.delete_map(KEYS_MAP, key.sha256)
        return ended

    def every(self, tenant: str | None = None) -> list[ApiKey]:
        """The keys in force, oldest first."""
        try:
            rows = json.loads(self._path.read_text())
            keys = [
                ApiKey(str(r["id"]), str(r["tenant"]), float(r["created"]), str(r["sha256"])) for r in rows
            ]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise SetupError(f"{self._path} is not a list of keys: {error!r}") from error
        return [key for key in keys if tenant in (None, key.tenant)]

    @property
    def _path(self) -> Path:
        return self._dir / "keys.json"

    @property
    def _lock(self) -> Path:
        return self._dir / "keys.lock"

    def _save(self, keys: list[ApiKey]) -> None:
        """The list and the map, both on the disk when this returns: a power cut revives no revoked key."""
        write_private(self._path, json.dumps([asdict(key) for key in keys], indent=1), lasting=True)
        write_map(self._dir / KEYS_MAP, {key.sha256: key.tenant for key in keys}, lasting=True)
