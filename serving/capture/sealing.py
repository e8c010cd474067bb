"""Encryption of the spool, where the policy says so (`capture.spool.encrypt`).

Both bodies of an exchange become one AES-256-GCM text (NIST SP 800-38D) with a random 96-bit nonce; the
request's id is authenticated with it, so that a text cannot be moved to another record. What a reader
needs to follow the spool (time, id, version, status) stays readable. A key of its own, as a rule from a
vault: whoever copies the disk, but not the secrets, has no request. Needs the package `cryptography`.
"""

from __future__ import annotations

import hashlib
import os
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from pathlib import Path

from serving.errors import ServingError

KEY_VARIABLE = "INTERLOCK_SECRET_SPOOL"
"""Where a key that comes from a vault is; it wins over the file."""

_NONCE_BYTES = 12
_LENGTH_BYTES = 8


class SpoolSealed(ServingError):
    """A spooled record that this key, or no key, does not open."""


class Seal:
    """Seals and opens the bodies of spooled exchanges with one key."""

    def __init__(self, secret: bytes) -> None:
        """`secret` is any text with at least 256 bits of chance in it; the cipher's key is its SHA-256.

        Raises SpoolSealed where the package is missing.
        """
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise SpoolSealed(
                "capture.spool.encrypt needs the package cryptography in the server's environment. "
                "Next: install it there, or switch the encryption off"
            ) from error
        self._cipher = AESGCM(hashlib.sha256(secret).digest())

    @classmethod
    def from_file(cls, path: Path | None, environ: Mapping[str, str]) -> Seal | None:
        """With the environment's key, else the file's; None where there is neither."""
        secret = environ.get(KEY_VARIABLE, "").encode() or (path.read_bytes().strip() if path else b"")
        return cls(secret) if secret else None

    def close(self, request: bytes, response: bytes, request_id: bytes) -> bytes:
        """The sealed bodies, in base64."""
        nonce = os.urandom(_NONCE_BYTES)
        plain = b"".join((len(request).to_bytes(_LENGTH_BYTES, "big"), request, response))
        return b2a_base64(nonce + self._cipher.encrypt(nonce, plain, request_id), newline=False)

    def open(self, sealed: str, request_id: str) -> tuple[bytes, bytes]:
        """The request's and the response's bytes. Raises SpoolSealed for another key or a changed text."""
        from cryptography.exceptions import InvalidTag

        try:
            raw = a2b_base64(sealed)
            plain = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], request_id.encode("latin-1"))
        except (InvalidTag, ValueError) as error:
            raise SpoolSealed(
                f"the spooled request {request_id} does not open with this key. Next: give the key that the "
                f"replicas have ({KEY_VARIABLE}, or secrets/spool.key)"
            ) from error
        end = _LENGTH_BYTES + int.from_bytes(plain[:_LENGTH_BYTES], "big")
        return plain[_LENGTH_BYTES:end], plain[end:]
