"""Which bucket a user falls into: the same arithmetic as the gateway's, in Python."""

from __future__ import annotations

import xxhash

from serving.endpoint import SHARE_SCALE


def bucket_of(salt: str, tenant: str, unit: str) -> int:
    """0 to 9999. `unit` is the user, or the request id where requests are randomised."""
    return xxhash.xxh32(f"{salt}:{tenant}:{unit}".encode()).intdigest() % SHARE_SCALE
