"""The environments of an endpoint's policy: compared, and kept from being released to."""

from __future__ import annotations

import difflib
from typing import Any

from configs.environments import ENVIRONMENTS, PRODUCTION, differences, policy_in
from configs.loading import load_endpoint, production_of
from configs.policy import Policy
from configs.settings import Settings
from serving.errors import Refused


def compare(settings: Settings, endpoint: str, left: str, right: str) -> dict[str, tuple[Any, Any]]:
    """Every key that differs, with its value in both. Raises `Refused` for an environment there is not."""
    policy = load_endpoint(settings, endpoint)
    return differences(_policy_in(policy, left), _policy_in(policy, right))


def refuse_environment(settings: Settings, endpoint: str, version: str) -> None:
    """Releases end in production. Raises `Refused` where an endpoint is an environment of another one.

    The registry's aliases say what production serves, and nobody sweeps or watches an environment.
    """
    production = production_of(settings, endpoint)
    if production != endpoint:
        raise Refused(
            f"{endpoint} is an environment of {production}, and nothing is released to it. Next: interlock "
            f"release {production} {version}, which passes staging where the policy has it; or interlock "
            f"evaluate {endpoint} {version}, which releases nothing"
        )


def _policy_in(policy: Policy, environment: str) -> Policy:
    known = [name for name in ENVIRONMENTS if name == PRODUCTION or name in policy.environments]
    for name in ENVIRONMENTS:
        if name == environment and name in known:
            return policy_in(policy, name)
    near = difflib.get_close_matches(environment, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise Refused(
        f"{policy.endpoint}: its policy has no environment {environment!r}{hint} It has: {', '.join(known)}. "
        "Next: add it under `environments:`"
    )
