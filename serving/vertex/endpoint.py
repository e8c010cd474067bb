"""Vertex AI as a platform: one dedicated endpoint, two deployed versions, a split of whole percents.

Nothing is remembered between calls: deployed versions, split and labels are read from Vertex each
time. There is no lease: a share stays until the flow or its guard takes it back.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from configs.policy import Policy
from configs.settings import Settings
from serving.endpoint import (
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
from serving.errors import NotApplied, NotHealthy, Refused
from serving.fence import check_change, check_deploy, check_retire
from serving.vertex.container import deployed_model
from serving.vertex.google_apis import GoogleApis, SplitConflict, finished, patient, status_of, translated
from serving.vertex.metrics import read_periods
from serving.vertex.models import ensure_model, registry_files
from serving.vertex.request_log import BigQueryRows, read_exchanges
from serving.vertex.state import (
    Deployed,
    deployed_id,
    labelled,
    labels_of,
    route_of,
    slot_of,
    split_of,
)

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1 import DeployedModel
    from google.cloud.aiplatform_v1 import Endpoint as VertexResource

_LOG = logging.getLogger("interlock.vertex")
_TRIES = 5
_POLL_S = 1.0
_CREATE_TIMEOUT_S = 600.0


class VertexEndpoint:
    """One endpoint on Vertex AI; see `serving.endpoint.Endpoint`."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        settings: Settings,
        *,
        fetch: Callable[[str], Path] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`fetch` gives the folder of a version's files for its URI; the registry's by default."""
        here = policy.vertex
        assert here is not None, "the policy's validation asks for the section"
        self.name = name
        self._policy = policy
        self._here = here
        self._settings = settings
        self._fetch = fetch or registry_files(settings)
        self._clock = clock
        self._sleep = sleep
        self._google = GoogleApis(here, settings)
        self.capabilities = Capabilities(
            share_step_bp=100,
            has_lease=False,
            sticky_users=False,
            per_request_observations=False,
            capture_delay_s=here.request_log.delay_s if here.request_log else 0.0,
            observation_period_s=here.metrics_period_s,
            observation_delay_s=here.metrics_delay_s,
        )

    @cached_property
    def _id(self) -> str:
        return self._here.endpoint_id or f"interlock-{self.name}"

    @property
    def _resource(self) -> str:
        return f"{self._google.parent}/endpoints/{self._id}"

    def deploy(self, slot: Slot, version: str, *, uri: str) -> None:
        """Upload the version once, deploy it without traffic, and wait until Vertex calls it deployed.

        Raises Refused for a slot with traffic, NoCapacity, NotHealthy for a container that does not come up
        (nothing of the version is left then), and NotApplied where the split moved.
        """
        resource = self._ensure_endpoint()
        held = _held(resource)
        route = self._route(resource)
        identifier = deployed_id(slot, version, uri)
        found = held.get(slot)
        is_same = found is not None and found.id == identifier
        other = "" if found is None else version if is_same else f"{found.version} ({found.id})"
        check_deploy(route, slot, version, other, self._clock())
        if is_same:
            return
        if found is not None:
            self._undeploy(found)
        model = ensure_model(self._google, self._policy, version, self._fetch(uri))
        before = dict(resource.traffic_split)
        self._deploy_model(deployed_model(self._here, identifier, version, model))
        after = self._read()
        if after is None or identifier not in {one.id for one in after.deployed_models}:
            raise NotApplied(
                f"{self.name}: version {version} was deployed into {slot}, but Vertex does not list it. "
                f"Next: interlock status {self.name}"
            )
        if dict(after.traffic_split) != before:
            raise NotApplied(
                f"{self.name}: deploying version {version} moved the split from {before} to "
                f"{dict(after.traffic_split)}. Next: interlock rollback {self.name}"
            )

    def apply(self, route: Route) -> None:
        """Write split and labels in one update under the endpoint's etag, and read them back.

        Somebody else's change in between is read and judged anew, a few times. Raises Fenced and LeaseExpired
        as the rules of `serving.fence` say, SplitConflict when it never comes to rest.
        """
        if route.endpoint != self.name:
            raise Refused(f"asked {self.name} to apply a route of {route.endpoint}")
        route = dataclasses.replace(route, salt=labelled(route.salt))
        for attempt in range(_TRIES):
            resource = self._must_read()
            check_change(self._route(resource), route, self._clock())
            split, labels = split_of(route, _held(resource)), labels_of(route)
            if self._has(resource, split, labels):
                return
            try:
                self._update(resource, split, labels)
            except SplitConflict:
                if attempt == _TRIES - 1:
                    raise
                self._sleep(_POLL_S * attempt)
                continue
            self._await_split(route, split, labels)
            return

    def describe(self) -> EndpointState:
        """Deployed versions, split and labels, all from one answer of Vertex."""
        resource = self._read()
        if resource is None:
            return EndpointState(self.name, None, dict.fromkeys(Slot, ""), dict.fromkeys(Slot, ()))
        held = _held(resource)
        return EndpointState(
            name=self.name,
            route=self._route(resource),
            versions={slot: held[slot].version if slot in held else "" for slot in Slot},
            replicas={slot: self._replicas(resource, held.get(slot)) for slot in Slot},
        )

    def invoke(self, slot: Slot, path: str, body: bytes, *, content_type: str, timeout_s: float) -> Reply:
        """Ask one deployed version by its id, past the split. Raises Refused for an empty slot."""
        import requests

        resource = self._must_read()
        deployed = _held(resource).get(slot)
        if deployed is None:
            raise Refused(f"{self.name}: asked to call {slot}, which holds no version. Next: deploy one")
        url = f"{self._address(resource)}/v1/{self._resource}/deployedModels/{deployed.id}/invoke{path}"
        begun = time.perf_counter()
        with translated(f"ask version {deployed.version}"):
            try:
                reply = self._google.session.post(
                    url, data=body, headers={"content-type": content_type}, timeout=timeout_s
                )
            except (requests.ConnectionError, requests.Timeout):
                return Reply(0, b"", (time.perf_counter() - begun) * 1000, content_type)
        elapsed_ms = (time.perf_counter() - begun) * 1000
        return Reply(reply.status_code, reply.content, elapsed_ms, reply.headers.get("content-type", ""))

    def observations(
        self, cursor: str | None, *, settle_s: float = 0.0, limit: int | None = None
    ) -> Observations:
        """Never: Vertex only counts."""
        raise Refused(f"{self.name}: Vertex counts requests, it does not list them. Next: read periods")

    def periods(self, since: float, until: float, *, edges_ms: tuple[float, ...]) -> list[Period]:
        """Counts from Cloud Monitoring; the bins are Google's, whatever `edges_ms` wishes for.

        Versions that were undeployed meanwhile are left out.
        """
        resource = self._must_read()
        complete = min(until, self._clock() - self._here.metrics_delay_s)
        deployed = {one.id: one for one in _held(resource).values()}
        return read_periods(
            self._google,
            self._id,
            deployed,
            since=since,
            until=complete,
            period_s=self._here.metrics_period_s,
        )

    def exchanges(self, cursor: str | None, *, limit: int) -> tuple[list[Exchange], str]:
        """Requests of the default slot from the request log, as late as the policy says it may be."""
        log = self._here.request_log
        if log is None:
            raise Refused(f"{self.name}: there is no request log. Next: vertex.request_log in the policy")
        until = self._clock() - log.delay_s
        if cursor is None:
            return [], f"{until!r}|"
        resource = self._must_read()
        route = self._route(resource)
        if route is None or route.default not in _held(resource):
            raise Refused(f"{self.name} has no champion yet, so there is nothing to replay")
        rows = BigQueryRows(self._google, log.table, self._id)
        return read_exchanges(rows, _held(resource)[route.default], cursor, until=until, limit=limit)

    def retire(self, slot: Slot) -> None:
        """Undeploy the version of a slot that has no traffic. Its model and artifacts stay."""
        resource = self._read()
        if resource is None:
            return
        check_retire(self._route(resource), slot, self._clock())
        deployed = _held(resource).get(slot)
        if deployed is not None:
            self._undeploy(deployed)

    # -- Vertex's verbs ------------------------------------------------------------------------------

    def _ensure_endpoint(self) -> VertexResource:
        from google.api_core.exceptions import Conflict
        from google.cloud.aiplatform_v1 import CreateEndpointRequest
        from google.cloud.aiplatform_v1 import Endpoint as VertexResource
        from google.cloud.aiplatform_v1.types import BigQueryDestination, PredictRequestResponseLoggingConfig

        found = self._read()
        if found is not None:
            return found
        wanted = VertexResource(
            display_name=self._id, dedicated_endpoint_enabled=True, labels={"interlock": self.name}
        )
        log = self._here.request_log
        if log is not None:
            wanted.predict_request_response_logging_config = PredictRequestResponseLoggingConfig(
                enabled=True,
                sampling_rate=log.percent / 100,
                bigquery_destination=BigQueryDestination(output_uri=f"bq://{log.table}"),
            )
        what = f"create the endpoint {self._id}"
        request = CreateEndpointRequest(parent=self._google.parent, endpoint=wanted, endpoint_id=self._id)
        with translated(what):
            try:
                operation = self._google.endpoints.create_endpoint(request, retry=patient())
            except Conflict as error:
                if status_of(error) != "ALREADY_EXISTS":
                    raise
                return self._must_read()
        finished(operation, what, _CREATE_TIMEOUT_S)
        return self._must_read()

    def _deploy_model(self, deployed: DeployedModel) -> None:
        """Zero traffic: an empty split in the request leaves the endpoint's own untouched."""
        from google.api_core.exceptions import Conflict
        from google.cloud.aiplatform_v1 import DeployModelRequest

        what = f"deploy version {deployed.display_name} as {deployed.id}"
        request = DeployModelRequest(endpoint=self._resource, deployed_model=deployed, traffic_split={})
        with translated(what):
            try:
                operation = self._google.endpoints.deploy_model(request, retry=patient())
            except Conflict as error:
                if status_of(error) != "ALREADY_EXISTS":
                    raise
                self._await_deployed(deployed.id)  # an earlier run of ours began it
                return
        finished(operation, what, self._here.deploy_timeout_s)

    def _await_deployed(self, identifier: str) -> None:
        deadline = self._clock() + self._here.deploy_timeout_s
        while identifier not in {one.id for one in self._must_read().deployed_models}:
            if self._clock() > deadline:
                raise NotHealthy(
                    f"{self.name}: an earlier deployment of {identifier} has not ended after "
                    f"{self._here.deploy_timeout_s:g} s. Next: look at the endpoint in the console"
                )
            self._sleep(_POLL_S)

    def _undeploy(self, deployed: Deployed) -> None:
        from google.api_core.exceptions import NotFound
        from google.cloud.aiplatform_v1 import UndeployModelRequest

        what = f"undeploy version {deployed.version} from {deployed.slot}"
        request = UndeployModelRequest(endpoint=self._resource, deployed_model_id=deployed.id)
        with translated(what):
            try:
                operation = self._google.endpoints.undeploy_model(request, retry=patient())
            except NotFound:
                return
        finished(operation, what, self._here.deploy_timeout_s)

    def _update(self, resource: VertexResource, split: Mapping[str, int], labels: Mapping[str, str]) -> None:
        from google.cloud.aiplatform_v1 import Endpoint as VertexResource
        from google.cloud.aiplatform_v1 import UpdateEndpointRequest
        from google.protobuf.field_mask_pb2 import FieldMask

        wanted = VertexResource(
            name=self._resource,
            etag=resource.etag,
            traffic_split=dict(split),
            labels={**resource.labels, **labels},
        )
        with translated(f"change the split to {dict(split)}"):
            self._google.endpoints.update_endpoint(
                UpdateEndpointRequest(
                    endpoint=wanted, update_mask=FieldMask(paths=["traffic_split", "labels"])
                ),
                retry=patient(),
            )

    def _await_split(self, route: Route, split: Mapping[str, int], labels: Mapping[str, str]) -> None:
        deadline = self._clock() + self._here.change_timeout_s
        while True:
            resource = self._must_read()
            if self._has(resource, split, labels):
                return
            newer = self._route(resource)
            if newer is not None and newer.generation > route.generation:
                check_change(newer, route, self._clock())
            if self._clock() > deadline:
                raise NotApplied(
                    f"{self.name}: asked for the split {dict(split)}, Vertex reports "
                    f"{dict(resource.traffic_split)} after {self._here.change_timeout_s:g} s. "
                    f"Next: interlock status {self.name}"
                )
            self._sleep(_POLL_S)

    def _has(self, resource: VertexResource, split: Mapping[str, int], labels: Mapping[str, str]) -> bool:
        return dict(resource.traffic_split) == dict(split) and labels.items() <= dict(resource.labels).items()

    def _read(self) -> VertexResource | None:
        from google.api_core.exceptions import NotFound

        with translated(f"read the endpoint {self._id}"):
            try:
                return self._google.endpoints.get_endpoint(name=self._resource, retry=patient())
            except NotFound:
                return None

    def _must_read(self) -> VertexResource:
        found = self._read()
        if found is None:
            raise Refused(f"{self.name}: Vertex has no endpoint {self._id}. Next: release a version onto it")
        return found

    def _route(self, resource: VertexResource) -> Route | None:
        return route_of(self.name, dict(resource.labels), dict(resource.traffic_split), _held(resource))

    def _replicas(self, resource: VertexResource, deployed: Deployed | None) -> tuple[Replica, ...]:
        address, machine = self._address(resource), self._here.machine_type
        if deployed is None:
            return ()
        return tuple(
            Replica(f"{deployed.id}-{number}", address, healthy=True, machine=machine)
            for number in range(deployed.replicas)
        )

    def _address(self, resource: VertexResource) -> str:
        return self._google.url(resource.dedicated_endpoint_dns)


def _held(resource: VertexResource) -> dict[Slot, Deployed]:
    """The deployed versions that are ours, by slot. Somebody else's on the endpoint are left alone."""
    found: dict[Slot, Deployed] = {}
    for one in resource.deployed_models:
        slot = slot_of(one.id)
        if slot is not None:
            replicas = one.status.available_replica_count or one.dedicated_resources.min_replica_count
            found[slot] = Deployed(one.id, slot, one.display_name, replicas)
    return found
