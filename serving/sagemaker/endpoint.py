"""An endpoint on Amazon SageMaker: two production variants, told apart by their weights.

What the platform holds is read each time: variants and weights from the endpoint, the route that was
asked for from one tag. SageMaker knows neither generations nor leases, so the tag is the fence
(read before each change and after it), and a share stays until somebody takes it back: the
journal's compare-and-set comes before, and the guard flow returns what nobody renews.

Every change of weights or variants takes the endpoint through `Updating`, where it takes no
other change. A failed update ends as InService on what served before: only the
configuration's name tells.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.policy import Policy
from configs.settings import Settings
from serving.endpoint import (
    SHARE_SCALE,
    Capabilities,
    EndpointState,
    Exchange,
    Observations,
    Period,
    Replica,
    Reply,
    Route,
    Slot,
)
from serving.errors import (
    Busy,
    ChangeUndone,
    Fenced,
    NoCapacity,
    NotApplied,
    NotHealthy,
    Refused,
    ServingError,
    SetupError,
)
from serving.fence import check_change, check_deploy, check_retire
from serving.sagemaker.artifacts import Artifacts
from serving.sagemaker.calls import ask_variant
from serving.sagemaker.captures import CaptureReader
from serving.sagemaker.clients import Clients
from serving.sagemaker.control import ControlPlane, Found, Variant
from serving.sagemaker.fleet import Fleet
from serving.sagemaker.metrics import read_periods
from serving.sagemaker.naming import of_variant, variant_name

_POLL_FIRST_S = 0.2
_POLL_MOST_S = 15.0
_POLL_GROWTH = 1.5


class SageMakerEndpoint:
    """One endpoint on SageMaker; see `serving.endpoint.Endpoint`."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        fetch: Callable[[str], Path] | None = None,
    ) -> None:
        if policy.sagemaker is None:
            raise SetupError(f"{name}: its policy has no section `sagemaker:`. Next: interlock policy-keys")
        self.name = name
        self._here = here = policy.sagemaker
        self._clock = clock
        self._sleep = sleep
        self._clients = Clients(here.region)
        artifacts = Artifacts(here.artifacts, self._clients, fetch or _fetching(settings))
        self._fleet = Fleet(name, policy, here, self._clients, artifacts)
        self._control = ControlPlane(name, self._clients)
        self._captures = CaptureReader(here.capture.uri, name, self._clients) if here.capture else None
        self.capabilities = Capabilities(
            share_step_bp=1,
            has_lease=False,
            sticky_users=False,
            per_request_observations=False,
            capture_delay_s=here.capture.delay_s if here.capture else 0.0,
            observation_period_s=float(here.metrics_period_s),
            observation_delay_s=here.metrics_delay_s,
        )

    # -- variants ------------------------------------------------------------------------------------

    def deploy(self, slot: Slot, version: str, *, uri: str) -> None:
        """Add the version as a variant of weight 0 and wait until it is in service.

        Raises Refused for a slot with traffic, NoCapacity or QuotaExceeded, NotHealthy for a container
        that does not start, ChangeUndone where SageMaker took the update back for another reason.
        """
        found = self._quiet()
        held = found.version_in(slot)
        self._check_share(found, slot, held, version)
        check_deploy(found.route, slot, version, held, self._clock())
        if held != version:
            self._add(found, slot, version, uri)
        self._fleet.scale(slot, version)
        self._fleet.watch(slot, version)

    def retire(self, slot: Slot) -> None:
        """Take the slot's variant out: scaling first, then the variant, then its model."""
        found = self._quiet()
        check_retire(found.route, slot, self._clock())
        held = found.version_in(slot)
        if not held:
            return
        self._check_share(found, slot, held, "")
        self._fleet.unscale(slot, held)
        rest = found.variant_in(slot.sibling)
        if rest is None:
            self._control.delete(found)
            self._await(lambda seen: not seen.exists, "delete it")
        else:
            self._update(found, [self._kept(found, rest)], [rest])
        self._fleet.unwatch(slot, held)
        self._fleet.forget(found.configuration, keep=[rest.name] if rest else [])

    def _add(self, found: Found, slot: Slot, version: str, uri: str) -> None:
        model = self._fleet.model(version, uri)
        rest = found.variant_in(slot.sibling)
        # SageMaker's default weight is 1: beside a champion of weight 1 that would be half of the traffic.
        made = self._fleet.variant(slot, version, model, weight=0.0 if rest else 1.0)
        replaced = found.variant_in(slot)
        if replaced is not None:
            self._fleet.unscale(slot, replaced.version)
        if not found.exists:
            self._create(made)
            return
        kept = [self._kept(found, rest)] if rest else []
        after = self._update(found, [*kept, made], [rest] if rest else [])
        new = after.variant_in(slot)
        if new is None or new.version != version or (rest is not None and new.weight != 0):
            raise NotApplied(
                f"{self.name}: asked for version {version} in {slot} at weight 0, found {new}. "
                f"Next: interlock status {self.name}"
            )
        if replaced is not None:
            self._fleet.unwatch(slot, replaced.version)
        self._fleet.forget(found.configuration, keep=[rest.name] if rest else [])

    def _create(self, variant: dict[str, Any]) -> None:
        configuration = self._fleet.configuration([variant])
        self._control.create(configuration)
        after = self._await(lambda seen: seen.status in ("InService", "Failed"), "start it")
        if after.status == "Failed":
            self._control.delete(after)
            self._await(lambda seen: not seen.exists, "remove what had failed")
            self._fleet.forget(configuration, keep=[])
            raise self._why(after, f"start variant {variant['VariantName']}")

    def _update(self, found: Found, variants: list[dict[str, Any]], stays: list[Variant]) -> Found:
        """Bring another configuration into force. The variants that stay keep weights and instances."""
        configuration = self._fleet.configuration(variants)
        deployment = self._fleet.deployment([(one.slot, one.version) for one in stays])
        names = ", ".join(one["VariantName"] for one in variants)
        self._control.update(configuration, deployment)
        after = self._await(lambda seen: seen.is_quiet, f"have variants {names}")
        if after.configuration != configuration:
            self._fleet.forget(configuration, keep=[one.name for one in found.variants])
            raise self._why(after, f"have variants {names}")
        return after

    def _kept(self, found: Found, variant: Variant) -> dict[str, Any]:
        """A variant as the configuration in force has it."""
        every = self._fleet.variants_of(found.configuration)
        return next(one for one in every if one["VariantName"] == variant.name)

    def _why(self, after: Found, asked: str) -> ServingError:
        """What a failed change means, from SageMaker's own reason."""
        reason = after.reason or "no reason was given"
        said = f"{self.name}: asked to {asked}, and SageMaker took it back: {reason}"
        if "InsufficientInstanceCapacity" in reason or "capacity" in reason.lower():
            return NoCapacity(
                f"{said}. Next: name further sagemaker.instance_types, or try later; nothing changed"
            )
        if "health check" in reason or "container" in reason.lower():
            return NotHealthy(
                f"{said}. Next: the log group /aws/sagemaker/Endpoints/{self.name} in CloudWatch"
            )
        return ChangeUndone(f"{said}. Next: the endpoint's events in the console; what served before serves")

    # -- traffic -------------------------------------------------------------------------------------

    def apply(self, route: Route) -> None:
        """Write the route's tag, then both weights in one call, and read both back.

        The tag comes first: from then on the guard knows of the share. While the endpoint is
        `Updating` this waits, for SageMaker takes no weights then.
        """
        if route.endpoint != self.name:
            raise Refused(f"asked {self.name} to apply a route of {route.endpoint}")
        self._check_fence(self._control.read(), route)
        found = self._quiet()
        self._check_fence(found, route)
        current = found.route
        if current is None or route.generation > current.generation:
            self._check_slots(found, route)
        asked = route if route.share_bp else dataclasses.replace(route, until=0.0)
        if asked != current:
            self._control.write_route(found, asked)
        wanted = self._weights(found, route)
        if wanted != found.weights:
            self._control.set_weights(wanted)
            found = self._await(lambda seen: seen.is_quiet, f"have weights {wanted}")
        else:
            found = self._control.read()
        self._read_back(found, asked, wanted)

    def describe(self) -> EndpointState:
        """Variants, and the route with the share that their weights really give."""
        found = self._control.read()
        return EndpointState(
            name=self.name,
            route=_as_it_is(found),
            versions={slot: found.version_in(slot) for slot in Slot},
            replicas={slot: self._replicas(found, slot) for slot in Slot},
        )

    def _check_fence(self, found: Found, route: Route) -> None:
        check_change(found.route, route, self._clock())

    def _check_slots(self, found: Found, route: Route) -> None:
        wanted = {route.default: route.default_version}
        if route.other_version:
            wanted[route.other] = route.other_version
        for slot, version in wanted.items():
            variant = found.variant_in(slot)
            if variant is None or variant.version != version or not variant.instances:
                raise Refused(
                    f"{self.name}: asked for version {version} in {slot}, which holds "
                    f"{variant.version if variant else 'nothing'}. Next: deploy it there first"
                )

    def _check_share(self, found: Found, slot: Slot, held: str, version: str) -> None:
        """The weights may say more than the route: a share that nobody has taken back yet."""
        share_bp = found.share_bp(slot)
        if found.route is not None and slot is not found.route.default and held != version and share_bp > 0:
            raise Refused(
                f"{self.name}: asked to change {slot}, which still holds {share_bp} bp of live traffic. "
                "Next: apply share 0 first"
            )

    def _weights(self, found: Found, route: Route) -> dict[str, float]:
        """Both variants' weights; what is in no slot of the route gets none."""
        wanted: dict[str, float] = {}
        for variant in found.variants:
            share_bp = SHARE_SCALE - route.share_bp if variant.slot is route.default else route.share_bp
            wanted[variant.name] = float(share_bp)
        return wanted

    def _read_back(self, found: Found, asked: Route, wanted: dict[str, float]) -> None:
        if found.route is not None and found.route.generation > asked.generation:
            raise Fenced(
                f"{self.name}: generation {found.route.generation} came while {asked.generation} was set. "
                "Next: stop, another release or a rollback took over"
            )
        if found.route != asked or found.weights != wanted:
            raise NotApplied(
                f"{self.name}: asked for {wanted}, SageMaker reports {found.weights}"
                f"{f' ({found.reason})' if found.reason else ''}. Next: interlock status {self.name}"
            )

    def _replicas(self, found: Found, slot: Slot) -> tuple[Replica, ...]:
        variant = found.variant_in(slot)
        if variant is None:
            return ()
        pools = variant.pools or {self._here.instance_types[0]: variant.instances}
        kinds = [kind for kind, count in pools.items() for _ in range(count)]
        return tuple(
            Replica(f"{variant.name}-{number}", found.arn, found.serves, kind)
            for number, kind in enumerate(kinds)
        )

    # -- seeing --------------------------------------------------------------------------------------

    def invoke(self, slot: Slot, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        """Ask one variant, past the weights. SageMaker counts such calls with the live ones."""
        version = self._control.read_cached(self._clock()).version_in(slot)
        if not version:
            raise Refused(f"{self.name}: asked to call {slot}, which holds no version. Next: deploy one")
        if path != "/invocations":
            raise Refused(f"{self.name}: SageMaker has /invocations only, not {path}")
        variant = variant_name(slot, version)
        return ask_variant(
            self._clients, self.name, variant, body, content_type=content_type, timeout_s=timeout_s
        )

    def observations(
        self, cursor: str | None, *, settle_s: float = 0.0, limit: int | None = None
    ) -> Observations:
        """Never: CloudWatch has counts only."""
        raise Refused(f"{self.name}: SageMaker only counts requests. Next: read periods")

    def periods(self, since: float, until: float, *, edges_ms: tuple[float, ...]) -> list[Period]:
        """CloudWatch's counts, as far as they are complete."""
        period_s = self._here.metrics_period_s
        until = min(until, self._clock() - self._here.metrics_delay_s) // period_s * period_s
        variants = [(one.slot, one.version) for one in self._control.read().variants]
        return read_periods(
            self._clients,
            self.name,
            variants,
            since=since,
            until=until,
            period_s=period_s,
            edges_ms=edges_ms,
        )

    def exchanges(self, cursor: str | None, *, limit: int) -> tuple[list[Exchange], str]:
        """What data capture recorded of the default slot, up to its watermark."""
        if self._captures is None:
            raise Refused(f"{self.name}: nothing is captured. Next: add sagemaker.capture to the policy")
        until = self._clock() - self.capabilities.capture_delay_s
        if cursor is None:
            route = self._control.read().route
            if route is None:
                raise Refused(f"{self.name} has no champion yet, so there is nothing to replay")
            cursor = self._captures.start(variant_name(route.default, route.default_version), until)
        variant = of_variant(cursor.partition("|")[0])
        if variant is None:
            raise Refused(
                f"{self.name}: {cursor!r} is not a cursor of this endpoint. Next: start without one"
            )
        return self._captures.read(cursor, variant[1], until=until, limit=limit)

    # -- waiting -------------------------------------------------------------------------------------

    def _quiet(self) -> Found:
        """The endpoint once no update is under way; also where there is none."""
        return self._await(lambda seen: not seen.exists or seen.is_quiet, "let an earlier change end")

    def _await(self, ready: Callable[[Found], bool], asked: str) -> Found:
        deadline, pause = self._clock() + self._here.update_timeout_s, _POLL_FIRST_S
        while True:
            found = self._control.read()
            if ready(found):
                return found
            if found.status in ("Failed", "UpdateRollbackFailed", "OutOfService"):
                raise NotHealthy(
                    f"{self.name}: asked to {asked}, found it {found.status}: {found.reason}. "
                    "Next: look at it in the console; SageMaker does not recover from this by itself"
                )
            if self._clock() > deadline:
                raise Busy(
                    f"{self.name}: asked to {asked}, still {found.status} after "
                    f"{self._here.update_timeout_s:g} s. "
                    "Next: it is tried again; sagemaker.update_timeout_s says for how long"
                )
            self._sleep(pause)
            pause = min(pause * _POLL_GROWTH, _POLL_MOST_S)


def _as_it_is(found: Found) -> Route | None:
    """The route as a request meets it: SageMaker follows weights, whatever was asked and until when."""
    route = found.route
    if route is None:
        return None
    share_bp = found.share_bp(route.other)
    return dataclasses.replace(route, share_bp=share_bp, until=route.until if share_bp else 0.0)


def _fetching(settings: Settings) -> Callable[[str], Path]:
    def fetch(uri: str) -> Path:
        from serving.replica.loading import fetch_model

        return fetch_model(uri, tracking_uri=settings.mlflow_url, cache_dir=settings.state_dir / "models")

    return fetch
