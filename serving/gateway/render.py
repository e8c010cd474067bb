"""Renders the gateway's configuration from what is on disk, proves it, and brings it into effect.

Everything comes from three places: the settings, the endpoints' limits (from their policies) and
the slot files. So any command can render the same configuration at any time, and a half-finished
one is never seen: it is checked by `haproxy -c` under another name first.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from configs.policy import Policy
from configs.settings import Settings
from serving.atomic import timed_lock, write_private
from serving.endpoint import SHARE_SCALE, Slot
from serving.errors import SetupError
from serving.gateway.binary import haproxy_binary
from serving.gateway.identity import user_key
from serving.gateway.limits import EndpointLimits, known_limits, limits_of, save_limits
from serving.gateway.log_format import log_format
from serving.gateway.maps import (
    CLOCK_SLACK_S,
    GRANT_MAP,
    KEYS_MAP,
    PATHS_MAP,
    ROUTE_MAP,
    TARGETS_MAP,
    read_map,
    write_map,
)
from serving.gateway.places import (
    LOG_DESCRIPTORS,
    admin_socket,
    config_path,
    gateway_runtime,
    jwt_public_key_path,
    tls_certificate_path,
)
from serving.gateway.process import with_log_descriptors
from serving.slots import SlotFiles

if TYPE_CHECKING:
    from jinja2 import Template

HEALTH_PATH = "/gw/health"
INFERENCE_PATHS = ("/invocations",)
"""What clients may POST to below `/{endpoint}`. Everything else is 404."""

LIST_MODELS_PATH = "/v1/models"
LLM_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", LIST_MODELS_PATH)
"""The same for language models; the list of models is the only path that is read with GET."""

ERRORS = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    407: "unauthorized",
    408: "request_timeout",
    410: "gone",
    413: "body_too_large",
    425: "too_early",
    429: "rate_limited",
    500: "internal_error",
    501: "not_implemented",
    502: "bad_gateway",
    503: "unavailable",
    504: "timeout",
}
"""HAProxy's own answers, as JSON. Only bytes that are no HTTP at all get its built-in text."""

_BUFFER_BYTES = 16_384
_CONNECTIONS_MAX = 16_384
_HARD_STOP_MARGIN_S = 30
_CLIENT_TIMEOUT_MS = 60_000
_CONFIG_LOCK_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Server:
    name: str
    address: str
    maxconn: int


@dataclass(frozen=True, slots=True)
class _Rendered:
    """An endpoint in the template: its limits, and the servers of its slots."""

    name: str
    queue: int
    concurrency: int
    timeout_ms: int
    retry_unanswered: bool
    servers: dict[str, list[_Server]]


def refresh_gateway(settings: Settings, policies: Iterable[Policy] = ()) -> bool:
    """Render from disk and, where the gateway runs and something changed, reload it.

    `policies` update what is known of their endpoints; without any, what is known stays. Returns
    whether a new configuration took effect. Raises SetupError when HAProxy rejects it (the old one
    then stays in force), PlatformUnavailable when it stops answering midway.
    """
    with timed_lock(settings.gateway_dir / "config.lock", wait_s=_CONFIG_LOCK_WAIT_S) as held:
        if not held:
            raise SetupError(f"{settings.gateway_dir}/config.lock is held by another process for too long")
        for policy in policies:
            save_limits(settings, limits_of(policy))
        runtime = gateway_runtime(settings)
        digest = _write_config(settings)
        loaded = settings.gateway_dir / "loaded.sha256"
        if _text_of(loaded) == digest:
            return False
        if runtime.is_up():
            runtime.reload()
        write_private(loaded, digest)  # last, so that a failed reload is tried again
        return True


def _write_config(settings: Settings) -> str:
    """Write maps and a proven configuration; returns the digest of all that HAProxy reads at a load.

    Routes, grants and keys are not part of it: those are changed while it runs.
    """
    endpoints = known_limits(settings)
    folder = settings.gateway_dir
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (ROUTE_MAP, GRANT_MAP, KEYS_MAP):
        if not (folder / name).exists():
            write_map(folder / name, {})
    paths, text = _paths(endpoints), _render(settings, endpoints)
    present = {name: read_map(folder / name) for name in paths}
    if (present, _text_of(config_path(settings))) != (paths, text):
        for name, entries in paths.items():
            write_map(folder / name, entries)
        proposed = folder / "haproxy.proposed.cfg"
        write_private(proposed, text)
        _prove(settings, proposed)
        proposed.replace(config_path(settings))
    pems = [_text_of(path) for path in (jwt_public_key_path(settings), tls_certificate_path(settings))]
    return hashlib.sha256("\0".join((text, str(paths), *pems)).encode()).hexdigest()


def _prove(settings: Settings, proposed: Path) -> None:
    """Let HAProxy check a configuration. Raises SetupError with its words when it objects."""
    binary = str(haproxy_binary(settings))
    command = with_log_descriptors([binary, "-c", "-C", str(settings.gateway_dir), "-f", str(proposed)])
    try:
        checked = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{binary} could not check the gateway's configuration: {error}") from error
    if checked.returncode != 0:
        told = [line for line in checked.stderr.splitlines() if not line.startswith("[NOTICE]")]
        raise SetupError(
            f"haproxy refuses the configuration, so the old one stays: {' '.join(told)}. "
            f"Next: look at {proposed}"
        )


def _render(settings: Settings, endpoints: list[EndpointLimits]) -> str:
    certificate, public_key = tls_certificate_path(settings), jwt_public_key_path(settings)
    if settings.gateway_tls_port is not None and not certificate.exists():
        raise SetupError(
            f"gateway_tls_port is set, but there is no {certificate}. "
            "Next: put certificate chain and private key there, in one PEM file"
        )
    timeout_ms_max = max((one.timeout_ms for one in endpoints), default=0)
    answer_ms_max = max((max(one.timeout_ms, one.stream_ms) for one in endpoints), default=0)
    return _template().render(
        admin_socket=str(admin_socket(settings)),
        log_descriptors=LOG_DESCRIPTORS[: _threads(settings)],
        host=settings.host,
        port=settings.gateway_port,
        metrics_port=settings.gateway_metrics_port,
        tls_port=settings.gateway_tls_port,
        tls_certificate=os.path.relpath(certificate, settings.gateway_dir),
        jwt_public_key=os.path.relpath(public_key, settings.gateway_dir) if public_key.exists() else None,
        jwt_claims=_wanted_claims(settings),
        connections_max=_connections_max(),
        hard_stop_s=answer_ms_max // 1000 + _HARD_STOP_MARGIN_S,
        client_timeout_ms=max(_CLIENT_TIMEOUT_MS, timeout_ms_max),
        buffer_bytes=_BUFFER_BYTES,
        user_key=base64.b64encode(user_key(settings)).decode(),
        errors=ERRORS,
        body=_error_body,
        log_format=log_format(),
        health_path=HEALTH_PATH,
        share_scale=SHARE_SCALE,
        clock_slack_s=CLOCK_SLACK_S,
        slots=[slot.value for slot in Slot],
        public_endpoints=[one.name for one in endpoints if one.public],
        llm_endpoints=[one.name for one in endpoints if one.is_llm],
        list_models_path=LIST_MODELS_PATH,
        by_request=[one.name for one in endpoints if one.assign_by == "request"],
        by_body=_grouped(endpoints, lambda one: one.body_bytes_max),
        by_rate=_grouped(endpoints, lambda one: one.rate_per_s),
        endpoints=_with_servers(settings, endpoints),
    )


def _threads(settings: Settings) -> int:
    """As many as there are cores, unless the settings say how many."""
    return settings.gateway_threads or min(os.cpu_count() or 1, len(LOG_DESCRIPTORS))


def _wanted_claims(settings: Settings) -> dict[str, str]:
    """Claims that a token must carry with exactly this value."""
    wanted = {"iss": settings.gateway_jwt_issuer, "aud": settings.gateway_jwt_audience}
    return {claim: value for claim, value in wanted.items() if value}


def _with_servers(settings: Settings, endpoints: list[EndpointLimits]) -> list[_Rendered]:
    records = {
        (record.endpoint, record.slot): record for record in SlotFiles(settings).every() if record.ready
    }
    rendered: list[_Rendered] = []
    for one in endpoints:
        servers: dict[str, list[_Server]] = {}
        for slot in Slot:
            record = records.get((one.name, slot))
            replicas = record.replicas if record else ()
            maxconn = (record.maxconn if record else 0) or one.concurrency
            servers[slot.value] = [
                _Server(each.name, f"{settings.host}:{each.port}", maxconn) for each in replicas
            ]
        rendered.append(
            _Rendered(one.name, one.queue, one.concurrency, one.timeout_ms, one.retry_unanswered, servers)
        )
    return rendered


def _grouped(endpoints: list[EndpointLimits], value: Callable[[EndpointLimits], int]) -> dict[int, list[str]]:
    """Endpoints by a limit: most often all have the same, and then a rule needs no name."""
    groups: dict[int, list[str]] = {}
    for one in endpoints:
        groups.setdefault(value(one), []).append(one.name)
    return groups


def _paths(endpoints: list[EndpointLimits]) -> dict[str, dict[str, str]]:
    """paths.map: whole path -> endpoint; targets.map: whole path -> path at the replica."""
    return {
        PATHS_MAP: {f"/{one.name}{path}": one.name for one in endpoints for path in _paths_of(one)},
        TARGETS_MAP: {f"/{one.name}{path}": path for one in endpoints for path in _paths_of(one)},
    }


def _paths_of(limits: EndpointLimits) -> tuple[str, ...]:
    return LLM_PATHS if limits.is_llm else INFERENCE_PATHS


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    environment.filters["word"] = _config_word
    return environment.from_string(Path(__file__).with_name("haproxy.cfg.j2").read_text())


def _error_body(error: str, status: int) -> str:
    return json.dumps({"error": error, "status": status}, separators=(",", ":"))


def _config_word(text: str) -> str:
    """A word of HAProxy's configuration, whatever characters it has."""
    return "".join(f"\\{char}" if char in " \\\"'#$" else char for char in text)


def _connections_max() -> int:
    """HAProxy refuses to start when its connections need more open files than it may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        return _CONNECTIONS_MAX
    return max(64, min(_CONNECTIONS_MAX, (hard - 256) * 2 // 5))


def _text_of(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
