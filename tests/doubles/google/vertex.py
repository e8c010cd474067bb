"""A loopback Vertex AI with its neighbours: stateful, strict, and honest about time and failure.

It speaks the REST of Vertex (endpoints, models, operations, invoke), Cloud Storage, Cloud Monitoring
and BigQuery, as far as one endpoint needs them. Bodies are parsed into Google's own protobuf types,
which refuse fields that do not exist, and answers are rendered from them, so no other field can leave.
Written from the API's documentation and from what its clients send; never compared with the service.

Times of metrics and logs follow `clock`; operations take `operation_s` of real time, because the
client's own polling does.
"""

from __future__ import annotations

import datetime
import json
import random
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from google.cloud import aiplatform_v1 as vertex  # noqa: TID253
from google.protobuf import json_format  # noqa: TID253
from google.protobuf.field_mask_pb2 import FieldMask  # noqa: TID253

from serving.endpoint import Reply
from tests.doubles.google.bigquery import BigQuery, instant
from tests.doubles.google.http import ROUTES, handler_of
from tests.doubles.google.monitoring import Answered, latencies, responses
from tests.doubles.google.problems import CODES, Problem, invalid, not_found
from tests.doubles.google.shapes import check_answer
from tests.doubles.google.storage import Storage

Behaviour = Callable[[bytes], Reply]
_INVOKE_S_MAX = 3.0
"""A direct call really takes what its version says, up to this."""


@dataclass
class _Operation:
    due: float
    finish: Callable[[], Any]
    response: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass
class VertexDouble(Storage, BigQuery):
    """The service and its state. `behave` says what a version answers, `break_start` that it never starts."""

    clock: Callable[[], float] = time.time
    operation_s: float = 0.0
    log_delay_s: float = 0.0
    ignored_updates: int = 0
    endpoints: dict[str, vertex.Endpoint] = field(default_factory=dict)
    models: dict[str, vertex.Model] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    requests: list[Answered] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._rng = random.Random(5)
        self._operations: dict[str, _Operation] = {}
        self._busy: set[str] = set()
        self._etag = 0
        self._behaviours: dict[str, Behaviour] = {}
        self._broken: set[str] = set()
        self._problems: dict[str, list[Problem]] = {}
        self._conditions: list[tuple[Callable[[str], bool], Problem]] = []
        self._lost: dict[str, list[None]] = {}
        self._resumable: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def behave(self, version: str, behaviour: Behaviour) -> None:
        self._behaviours[version] = behaviour

    def break_start(self, version: str) -> None:
        self._broken.add(version)

    def fail_next(self, verb: str, problem: Problem, *, times: int = 1) -> None:
        """Let the next calls of a verb be refused, with nothing done."""
        self._problems.setdefault(verb, []).extend([problem] * times)

    def fail_while(self, condition: Callable[[str], bool], problem: Problem) -> None:
        """Let every call of a verb for which the condition holds be refused, as long as it holds."""
        self._conditions.append((condition, problem))

    def lose_answer(self, verb: str) -> None:
        """Do what the next call of a verb asks, and then break the connection."""
        self._lost.setdefault(verb, []).append(None)

    def send(self, endpoint_id: str, body: bytes, *, path: str = "/invocations") -> tuple[int, str, bytes]:
        """One live request: status, deployed id and body. Drawn anew each time, as the service does."""
        with self._lock:
            resource = self._endpoint(endpoint_id)
            split = {name: share for name, share in resource.traffic_split.items() if share}
            if not split:
                raise Problem(503, "UNAVAILABLE", "The endpoint accepts no traffic.")
            deployed = self._rng.choices(list(split), weights=list(split.values()))[0]
        status, answer, _ = self._answer(endpoint_id, deployed, body, is_live=True)
        return status, deployed, answer

    # -- routes ---------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> Any:
        """Answer a call: a dict, or (status, bytes), or (status, headers)."""
        for verb, at, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, path) if at == method else None
            if match:
                self.calls.append(verb)
                problems = [problem for condition, problem in self._conditions if condition(verb)]
                problems = problems or self._problems.get(verb, [])
                if problems:
                    raise problems.pop(0)
                answer = getattr(self, handler)(*match.groups(), query=query, body=body, headers=headers)
                check_answer(verb, answer)
                if self._lost.get(verb):
                    self._lost[verb].pop()
                    raise ConnectionAbortedError(verb)
                return answer
        raise Problem(501, "UNIMPLEMENTED", f"the double knows no {method} {path}")

    def create_endpoint(self, parent: str, *, query: dict[str, str], body: bytes, **_: Any) -> Any:
        identifier = query.get("endpointId", "")
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]", identifier):
            raise invalid(f"endpoint_id {identifier!r}")
        with self._lock:
            if identifier in self.endpoints:
                raise Problem(409, "ALREADY_EXISTS", f"endpoint {identifier} exists")
            resource = _parse(vertex.Endpoint, body)
            if not resource.display_name:
                raise invalid("display_name is required")
            _check_labels(resource)
            resource.name = f"{parent}/endpoints/{identifier}"
            resource.create_time = resource.update_time = _now()
            resource.dedicated_endpoint_dns = f"{identifier}.prediction.vertexai.goog"

            def finish() -> vertex.Endpoint:
                self._store(identifier, resource)
                return resource

            self._busy_check(identifier)
            return self._begin(f"{parent}/endpoints/{identifier}", identifier, finish, "CreateEndpoint")

    def get_endpoint(self, identifier: str, **_: Any) -> Any:
        with self._lock:
            return _render(self._endpoint(identifier))

    def update_endpoint(self, identifier: str, *, query: dict[str, str], body: bytes, **_: Any) -> Any:
        with self._lock:
            current = self._endpoint(identifier)
            asked = _parse(vertex.Endpoint, body)
            mask = FieldMask()
            mask.FromJsonString(query.get("updateMask", ""))
            if not mask.paths or set(mask.paths) - {"traffic_split", "labels", "display_name", "description"}:
                raise invalid(f"update_mask {list(mask.paths)}")
            if asked.etag and asked.etag != current.etag:
                raise Problem(409, "ABORTED", f"etag mismatch: {asked.etag} is not {current.etag}")
            if self.ignored_updates > 0:
                self.ignored_updates -= 1
                return _render(current)
            if "traffic_split" in mask.paths:
                self._check_split(current, dict(asked.traffic_split))
                current.traffic_split = dict(asked.traffic_split)
            if "labels" in mask.paths:
                _check_labels(asked)
                current.labels = dict(asked.labels)
            self._store(identifier, current)
            return _render(current)

    def deploy_model(self, identifier: str, *, body: bytes, **_: Any) -> Any:
        with self._lock:
            current = self._endpoint(identifier)
            asked = _parse(vertex.DeployModelRequest, body)
            one = asked.deployed_model
            if not re.fullmatch(r"[0-9]{1,10}", one.id):
                raise invalid(f"deployed_model.id {one.id!r}")
            if one.model not in self.models:
                raise not_found(f"model {one.model}")
            if (
                self.models[one.model].container_spec.invoke_route_prefix
                and not current.dedicated_endpoint_enabled
            ):
                raise invalid("the model can only be deployed to a dedicated endpoint")
            resources = one.dedicated_resources
            if not resources.machine_spec.machine_type or resources.min_replica_count < 1:
                raise invalid("dedicated_resources needs a machine type and min_replica_count >= 1")
            if one.id in {other.id for other in current.deployed_models} or one.id in self._busy:
                raise Problem(409, "ALREADY_EXISTS", f"deployed model {one.id} exists")
            if asked.traffic_split:
                raise invalid("the double deploys at zero traffic only")

            def finish() -> vertex.DeployModelResponse:
                if one.display_name in self._broken:
                    raise Problem(
                        400, "FAILED_PRECONDITION", f"Model server of {one.display_name} never became ready."
                    )
                now = self._endpoint(identifier)
                one.create_time = _now()
                one.status = vertex.DeployedModel.Status(
                    available_replica_count=one.dedicated_resources.min_replica_count
                )
                now.deployed_models.append(one)
                self._store(identifier, now)
                return vertex.DeployModelResponse(deployed_model=one)

            return self._begin(current.name, one.id, finish, "DeployModel")

    def undeploy_model(self, identifier: str, *, body: bytes, **_: Any) -> Any:
        with self._lock:
            current = self._endpoint(identifier)
            asked = _parse(vertex.UndeployModelRequest, body)
            if asked.deployed_model_id not in {one.id for one in current.deployed_models}:
                raise not_found(f"deployed model {asked.deployed_model_id}")
            if current.traffic_split.get(asked.deployed_model_id, 0):
                raise Problem(400, "FAILED_PRECONDITION", "the deployed model still receives traffic")

            def finish() -> vertex.UndeployModelResponse:
                now = self._endpoint(identifier)
                kept = [one for one in now.deployed_models if one.id != asked.deployed_model_id]
                now.deployed_models = kept
                now.traffic_split = {
                    name: share
                    for name, share in now.traffic_split.items()
                    if name != asked.deployed_model_id
                }
                self._store(identifier, now)
                return vertex.UndeployModelResponse()

            return self._begin(current.name, asked.deployed_model_id, finish, "UndeployModel")

    def get_model(self, name: str, **_: Any) -> Any:
        with self._lock:
            if name not in self.models:
                raise not_found(f"model {name}")
            return _render(self.models[name])

    def upload_model(self, parent: str, *, body: bytes, **_: Any) -> Any:
        asked = _parse(vertex.UploadModelRequest, body)
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,62}", asked.model_id):
            raise invalid(f"model_id {asked.model_id!r}")
        name = f"{parent}/models/{asked.model_id}"
        spec = asked.model.container_spec
        if not spec.image_uri or not asked.model.display_name:
            raise invalid("display_name and container_spec.image_uri are required")
        if spec.predict_route and spec.invoke_route_prefix:
            raise invalid("only one of predict_route and invoke_route_prefix")
        prefix = asked.model.artifact_uri.removeprefix("gs://") + "/"
        with self._lock:
            if not any(key.startswith(prefix) for key in self.objects):
                raise invalid(f"artifact_uri {asked.model.artifact_uri} holds nothing")
            if name in self.models or name in self._busy:
                raise Problem(409, "ALREADY_EXISTS", f"model {name} exists")

            def finish() -> vertex.UploadModelResponse:
                asked.model.name, asked.model.version_id = name, "1"
                self.models[name] = asked.model
                return vertex.UploadModelResponse(model=name, model_version_id="1")

            return self._begin(name, name, finish, "UploadModel")

    def get_operation(self, name: str, **_: Any) -> Any:
        with self._lock:
            if name not in self._operations:
                raise not_found(f"operation {name}")
            return self._operation_body(name)

    def invoke(self, identifier: str, deployed: str, path: str, *, body: bytes, **_: Any) -> Any:
        with self._lock:
            if deployed not in {one.id for one in self._endpoint(identifier).deployed_models}:
                raise not_found(f"deployed model {deployed}")
        status, answer, elapsed_ms = self._answer(identifier, deployed, body, is_live=False)
        time.sleep(min(elapsed_ms / 1000, _INVOKE_S_MAX))
        return status, answer

    def time_series(self, _project: str, *, query: dict[str, str], **_kept: Any) -> Any:
        metric = re.search(r'metric.type="([^"]+)"', query["filter"])
        assert metric is not None
        assert 'resource.type="aiplatform.googleapis.com/Endpoint"' in query["filter"]
        assert query["aggregation.perSeriesAligner"] == "ALIGN_DELTA"
        period = int(query["aggregation.alignmentPeriod"].removesuffix("s"))
        start, end = (instant(query[f"interval.{edge}Time"]) for edge in ("start", "end"))
        with self._lock:
            kept = [one for one in self.requests if start <= one.time < end]
        make = responses if metric[1].endswith("response_count") else latencies
        return {"timeSeries": make(metric[1], kept, start, period), "unit": "1"}

    # -- state ----------------------------------------------------------------------------------------

    def _answer(
        self, endpoint_id: str, deployed: str, body: bytes, *, is_live: bool
    ) -> tuple[int, bytes, float]:
        with self._lock:
            one = next(one for one in self._endpoint(endpoint_id).deployed_models if one.id == deployed)
        reply = self._behaviours.get(one.display_name, _fine)(body)
        with self._lock:
            now = round(self.clock(), 6)
            self.requests.append(Answered(now, deployed, reply.status or 504, reply.elapsed_ms))
            if reply.status == 200 and is_live:
                self.rows.append(
                    {
                        "time": now,
                        "id": f"{len(self.rows):09d}",
                        "endpoint": endpoint_id,
                        "deployed": deployed,
                        "request": body.decode(),
                        "response": reply.body.decode(),
                    }
                )
        return reply.status or 504, reply.body, reply.elapsed_ms

    def _endpoint(self, identifier: str) -> vertex.Endpoint:
        if identifier not in self.endpoints:
            raise not_found(f"endpoint {identifier}")
        return vertex.Endpoint(self.endpoints[identifier])

    def _store(self, identifier: str, resource: vertex.Endpoint) -> None:
        self._etag += 1
        resource.etag = f"etag-{self._etag}"
        resource.update_time = _now()
        self.endpoints[identifier] = resource

    def _check_split(self, current: vertex.Endpoint, split: dict[str, int]) -> None:
        known = {one.id for one in current.deployed_models}
        if set(split) - known:
            raise invalid(f"traffic_split names {sorted(set(split) - known)}, which are not deployed")
        if split and (sum(split.values()) != 100 or min(split.values()) < 0):
            raise invalid(f"traffic_split must add up to 100, not {sum(split.values())}")

    def _busy_check(self, key: str) -> None:
        if key in self._busy:
            raise Problem(409, "ALREADY_EXISTS", f"{key} is being made")

    def _begin(self, owner: str, key: str, finish: Callable[[], Any], kind: str) -> dict[str, Any]:
        name = f"{owner}/operations/{uuid.uuid4().int % 10**18}"
        self._busy.add(key)

        def finish_once() -> Any:
            self._busy.discard(key)
            return finish()

        self._operations[name] = _Operation(time.monotonic() + self.operation_s, finish_once)
        del kind
        return self._operation_body(name)

    def _operation_body(self, name: str) -> dict[str, Any]:
        one = self._operations[name]
        if one.response is None and one.error is None and time.monotonic() >= one.due:
            try:
                message = one.finish()
                kind = type(message).pb(message).DESCRIPTOR.full_name
                one.response = {"@type": f"type.googleapis.com/{kind}", **_render(message)}
            except Problem as problem:
                one.error = {"code": CODES[problem.status], "message": problem.message}
        done = one.response is not None or one.error is not None
        return {
            "name": name,
            **({"done": True} if done else {}),
            **({"response": one.response} if one.response is not None else {}),
            **({"error": one.error} if one.error is not None else {}),
        }


def _fine(_: bytes) -> Reply:
    return Reply(200, b'{"predictions":[0]}', 1.0)


def _parse(kind: Any, body: bytes) -> Any:
    try:
        return kind.from_json(body.decode() or "{}", ignore_unknown_fields=False)
    except json_format.ParseError as error:
        raise invalid(f"Invalid JSON payload received: {error}") from error


def _render(message: Any) -> dict[str, Any]:
    return json.loads(type(message).to_json(message, always_print_fields_with_no_presence=False))


def _check_labels(resource: vertex.Endpoint) -> None:
    for name, value in resource.labels.items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name) or not re.fullmatch(r"[a-z0-9_-]{0,63}", value):
            raise invalid(f"label {name}={value}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
