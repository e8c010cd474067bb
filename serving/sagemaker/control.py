"""The control plane of one endpoint: what it is now, and the five calls that change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.endpoint import SHARE_SCALE, Route, Slot
from serving.sagemaker.clients import Clients, is_missing, translated
from serving.sagemaker.naming import ENDPOINT_TAG, ROUTE_TAG, of_variant, route_of, route_text

_CACHE_S = 1.0
_SERVES = frozenset({"InService", "Updating", "SystemUpdating", "RollingBack"})


@dataclass(frozen=True, slots=True)
class Variant:
    """One production variant. `instances` are in service, `pools` the same by type where there are pools."""

    slot: Slot
    version: str
    name: str
    weight: float
    instances: int
    pools: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """The endpoint as SageMaker reports it; `status` is "" where there is none.

    `route` is what was asked for last (from the tag), None before the first one.
    """

    status: str = ""
    arn: str = ""
    configuration: str = ""
    reason: str = ""
    variants: tuple[Variant, ...] = ()
    route: Route | None = None

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self.status != ""

    @property
    def is_quiet(self) -> bool:
        """Whether it takes changes."""
        return self.status == "InService"

    @property
    def serves(self) -> bool:
        """Whether it answers requests."""
        return self.status in _SERVES

    @property
    def weights(self) -> dict[str, float]:
        """Variant to weight, as it is in force."""
        return {variant.name: variant.weight for variant in self.variants}

    def variant_in(self, slot: Slot) -> Variant | None:
        """The slot's variant."""
        return next((variant for variant in self.variants if variant.slot is slot), None)

    def version_in(self, slot: Slot) -> str:
        """The slot's version, "" where it is empty."""
        variant = self.variant_in(slot)
        return variant.version if variant is not None else ""

    def share_bp(self, slot: Slot) -> int:
        """Basis points of the requests that the slot's variant is given."""
        variant, whole = self.variant_in(slot), sum(self.weights.values())
        return round(variant.weight / whole * SHARE_SCALE) if variant is not None and whole > 0 else 0


class ControlPlane:
    """Calls of the `sagemaker` API on one endpoint."""

    def __init__(self, name: str, clients: Clients) -> None:
        self._name = name
        self._clients = clients
        self._cached: tuple[float, Found] = (0.0, Found())

    def read(self) -> Found:
        """The endpoint now."""
        from botocore.exceptions import ClientError

        with translated(f"{self._name}: describe it"):
            try:
                answer: Any = self._clients.sagemaker.describe_endpoint(EndpointName=self._name)
            except ClientError as error:
                if is_missing(error):
                    return Found()
                raise
            tags: Any = self._clients.sagemaker.list_tags(ResourceArn=answer["EndpointArn"])["Tags"]
        text = next((str(tag["Value"]) for tag in tags if tag["Key"] == ROUTE_TAG), "")
        return Found(
            status=str(answer["EndpointStatus"]),
            arn=str(answer["EndpointArn"]),
            configuration=str(answer.get("EndpointConfigName", "")),
            reason=str(answer.get("FailureReason", "")),
            variants=_variants(answer.get("ProductionVariants", [])),
            route=route_of(self._name, text) if text else None,
        )

    def read_cached(self, now: float) -> Found:
        """The same, at most a second old: for what is asked with every request."""
        at, found = self._cached
        if not 0 <= now - at < _CACHE_S:
            found = self.read()
            self._cached = (now, found)
        return found

    def create(self, configuration: str) -> None:
        """Begin to create it."""
        with translated(f"{self._name}: create it"):
            self._clients.sagemaker.create_endpoint(
                EndpointName=self._name,
                EndpointConfigName=configuration,
                Tags=[{"Key": ENDPOINT_TAG, "Value": self._name}],
            )

    def update(self, configuration: str, deployment: Mapping[str, Any]) -> None:
        """Begin to bring another configuration into force; what stays keeps weights and instances."""
        self._cached = (0.0, Found())
        with translated(f"{self._name}: update it to {configuration}"):
            self._clients.sagemaker.update_endpoint(
                EndpointName=self._name,
                EndpointConfigName=configuration,
                RetainAllVariantProperties=True,
                **deployment,
            )

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Begin to move traffic: all weights in one call."""
        with translated(f"{self._name}: set weights {dict(weights)}"):
            self._clients.sagemaker.update_endpoint_weights_and_capacities(
                EndpointName=self._name,
                DesiredWeightsAndCapacities=[
                    {"VariantName": name, "DesiredWeight": weight} for name, weight in weights.items()
                ],
            )

    def write_route(self, found: Found, route: Route) -> None:
        """Write down what is asked for."""
        with translated(f"{self._name}: tag it"):
            self._clients.sagemaker.add_tags(
                ResourceArn=found.arn, Tags=[{"Key": ROUTE_TAG, "Value": route_text(route)}]
            )

    def delete(self, found: Found) -> None:
        """Begin to delete it."""
        self._cached = (0.0, Found())
        with translated(f"{self._name}: delete it"):
            self._clients.sagemaker.delete_endpoint(EndpointName=self._name)


def _variants(reported: list[Mapping[str, Any]]) -> tuple[Variant, ...]:
    """Ours among the reported ones; a foreign variant in an endpoint of ours is left alone."""
    found: list[Variant] = []
    for one in reported:
        ours = of_variant(str(one["VariantName"]))
        if ours is not None:
            weight, count = float(one.get("CurrentWeight", 0.0)), int(one.get("CurrentInstanceCount", 0))
            pools = {
                str(pool["InstanceType"]): int(pool.get("CurrentInstanceCount", 0))
                for pool in one.get("InstancePools", ())
            }
            found.append(Variant(*ours, str(one["VariantName"]), weight, count, pools))
    return tuple(found)
