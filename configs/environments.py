"""Environments: the file is production's policy; `environments:` says what differs elsewhere.

An overlay is merged into the file's policy section by section; a list or a plain value replaces what
was there. What comes out must be a whole policy of its own, for an endpoint of its own: `NAME-staging`
beside `NAME`, the same code, gateway and model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from configs.policy import Policy

Overlay = Literal["staging", "development"]
PRODUCTION: Final = "production"
STAGING: Final = "staging"
OVERLAYS: tuple[Overlay, ...] = ("staging", "development")
ENVIRONMENTS = (PRODUCTION, *OVERLAYS)

Plain = Mapping[str, Any]


def endpoint_in(endpoint: str, environment: str) -> str:
    """The name of an endpoint in an environment."""
    return endpoint if environment == PRODUCTION else f"{endpoint}-{environment}"


def policy_in(policy: Policy, environment: Overlay | Literal["production"]) -> Policy:
    """The policy of an environment, of its own endpoint.

    Raises KeyError for an environment that the policy does not have, pydantic's ValidationError where
    the overlay and the policy make no whole policy.
    """
    if environment == PRODUCTION:
        return policy
    overlay: Plain = policy.environments[environment]
    mine = policy.model_dump(mode="json", exclude={"environments"})
    return Policy.model_validate(
        {**_merged(mine, overlay), "endpoint": endpoint_in(policy.endpoint, environment)}
    )


def differences(left: Policy, right: Policy) -> dict[str, tuple[Any, Any]]:
    """Every key whose value differs, with both values; None where one of them has no such section."""
    one, other = (_flat(policy.model_dump(mode="json", exclude={"environments"})) for policy in (left, right))
    keys = dict.fromkeys((*one, *other))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _merged(base: Plain, overlay: Plain) -> dict[str, Any]:
    """`overlay` over `base`: sections go into each other, everything else is replaced."""
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = _merged(cast("Plain", below), cast("Plain", value))
        else:
            merged[key] = value
    return merged


def _flat(section: Plain, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            flat |= _flat(cast("Plain", value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
