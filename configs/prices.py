"""What an hour of a machine costs by the policy, whatever the platform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.policy import Policy

LOCAL_MACHINE = "replica"
"""The kind of machine of the local platform; its price is `serving.price.replica_per_hour`."""
API_MACHINE = "api"
"""A replica that only passes requests on to a provider: its hours cost nothing, its tokens do."""


def machine_prices(policy: Policy) -> Mapping[str, float]:
    """Dollars an hour by kind of machine, as the platform names it; empty where the policy says none."""
    if policy.platform == "sagemaker" and policy.sagemaker is not None:
        return policy.sagemaker.price_per_hour
    if policy.platform == "vertex" and policy.vertex is not None:
        price, kind = policy.vertex.price_per_hour, policy.vertex.machine_type
    else:
        price = policy.serving.price.replica_per_hour if policy.serving.price is not None else None
        kind = LOCAL_MACHINE
    return {} if price is None else {kind: price}
