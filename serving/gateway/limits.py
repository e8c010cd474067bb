"""What the gateway has to know of an endpoint, kept on disk so that any command can render it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from configs.policy import Policy
from configs.settings import Settings
from serving.atomic import write_private
from serving.errors import SetupError

_QUEUE_FILL = 2
"""With batching a replica is sent this many full batches: one runs while the next one gathers."""


@dataclass(frozen=True, slots=True)
class EndpointLimits:
    """One endpoint as the gateway sees it. `concurrency` is per replica, `queue` per slot.

    `timeout_ms` is time without a byte from the replica, `stream_ms` the longest whole answer.
    """

    name: str
    public: bool
    rate_per_s: int
    body_bytes_max: int
    assign_by: Literal["user", "request"]
    concurrency: int
    queue: int
    timeout_ms: int
    retry_unanswered: bool
    is_llm: bool = False
    stream_ms: int = 0


def limits_of(policy: Policy) -> EndpointLimits:
    """The part of a policy that the gateway enforces."""
    replicas = policy.replicas
    is_llm = policy.serving.is_llm
    joined = _QUEUE_FILL * replicas.batch.max_rows if replicas.batch else 0
    return EndpointLimits(
        name=policy.endpoint,
        public=policy.access.public,
        rate_per_s=policy.access.rate_per_s,
        body_bytes_max=policy.access.max_body_bytes,
        assign_by=policy.assign_by,
        concurrency=max(replicas.concurrency, joined),
        queue=replicas.queue,
        timeout_ms=round(replicas.request_timeout_s * 1000),
        # A generation that was asked for twice is paid for twice, and its text differs.
        retry_unanswered=not is_llm if replicas.retry_unanswered is None else replicas.retry_unanswered,
        is_llm=is_llm,
        stream_ms=round(drain_s(policy) * 1000),
    )


def drain_s(policy: Policy) -> float:
    """How long one answer may take to its last byte: what draining and reloads wait for, in seconds."""
    if policy.serving.is_llm:
        return max(policy.replicas.request_timeout_s, policy.serving.stream_timeout_s)
    return policy.replicas.request_timeout_s


def save_limits(settings: Settings, limits: EndpointLimits) -> None:
    """Remember an endpoint for later renderings."""
    path = settings.gateway_dir / "endpoints" / f"{limits.name}.json"
    write_private(path, json.dumps(asdict(limits), indent=1))


def forget_limits(settings: Settings, endpoint: str) -> None:
    """Let the gateway know nothing of an endpoint from the next rendering on: its paths are 404 then."""
    (settings.gateway_dir / "endpoints" / f"{endpoint}.json").unlink(missing_ok=True)


def known_limits(settings: Settings) -> list[EndpointLimits]:
    """Every endpoint that was ever rendered here, by name."""
    found: list[EndpointLimits] = []
    for path in sorted((settings.gateway_dir / "endpoints").glob("*.json")):
        try:
            found.append(EndpointLimits(**json.loads(path.read_text())))
        except (ValueError, TypeError) as error:
            raise SetupError(f"{path} is not ours: {error}. Next: remove it, then interlock up") from error
    return found
