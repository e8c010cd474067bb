"""Where the gateway's files and sockets are."""

from __future__ import annotations

from pathlib import Path

from configs.settings import Settings
from serving.gateway.runtime import Runtime

LOG_DESCRIPTORS = (1, *range(3, 10))
"""What HAProxy's threads write the access log to, one each: standard output and copies of it."""


def master_socket(settings: Settings) -> Path:
    """Where HAProxy's master takes commands."""
    return settings.run_dir / "gateway-master.sock"


def gateway_runtime(settings: Settings) -> Runtime:
    """The Runtime API of this stack's gateway."""
    return Runtime(master_socket(settings))


def access_log_path(settings: Settings) -> Path:
    """The access log: one JSON object a line, appended by HAProxy itself."""
    return settings.gateway_dir / "access.log"


def jwt_public_key_path(settings: Settings) -> Path:
    """The PEM public key that verifies RS256 tokens. Without this file no token is accepted."""
    return settings.secrets_dir / "jwt_public.pem"


def tls_certificate_path(settings: Settings) -> Path:
    """Certificate chain and private key of the TLS port, in one PEM file."""
    return settings.secrets_dir / "gateway.pem"


def admin_socket(settings: Settings) -> Path:
    """The present worker's own socket, which passes the listeners on at a reload."""
    return settings.run_dir / "gateway.sock"


def config_path(settings: Settings) -> Path:
    """HAProxy's configuration. It holds the key of the users' HMAC: mode 0600."""
    return settings.gateway_dir / "haproxy.cfg"
