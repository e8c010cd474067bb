"""Which class serves a policy's `platform`, and what must be installed for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from configs.policy import Policy
from configs.settings import Settings
from serving.errors import SetupError

if TYPE_CHECKING:
    from serving.endpoint import Endpoint

_NEEDS = {"sagemaker": ("boto3", "aws"), "vertex": ("google.cloud.aiplatform_v1", "gcp")}
"""The package that a platform needs, and the extra that has it."""


def open_endpoint(
    policy: Policy,
    settings: Settings,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Endpoint:
    """The policy's endpoint on its platform. Raises `SetupError` where a package is missing."""
    package, extra = _NEEDS.get(policy.platform, ("", ""))
    if package and not _is_installed(package):
        raise SetupError(
            f"{policy.endpoint}: platform {policy.platform} needs the package {package}, which is not "
            f"installed. Next: pip install 'interlock[{extra}]' (in this checkout: make install)"
        )
    if policy.platform == "sagemaker":
        from serving.sagemaker.endpoint import SageMakerEndpoint

        return SageMakerEndpoint(policy.endpoint, policy, settings, clock=clock, sleep=sleep)
    if policy.platform == "vertex":
        from serving.vertex.endpoint import VertexEndpoint

        return VertexEndpoint(policy.endpoint, policy, settings, clock=clock, sleep=sleep)
    from serving.local import LocalEndpoint
    from serving.supervision import Supervisor

    return LocalEndpoint(policy.endpoint, policy, settings, Supervisor(settings))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # not even its namespace
        return False
