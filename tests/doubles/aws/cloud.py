"""One AWS region on a loopback port: the real boto3 talks to it through `AWS_ENDPOINT_URL`.

Strict by botocore's models (see `wire`), stateful, with a clock that is an argument: by hand in
tests of flows, the real one elsewhere. `faults` decide before a call is handled what goes wrong.
"""

from __future__ import annotations

import base64
import json
import random
import re
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.etree import ElementTree

from botocore import xform_name

from serving.endpoint import Reply
from serving.fake import Behaviour, answers_ok
from tests.doubles.aws import wire
from tests.doubles.aws.sagemaker import SageMaker
from tests.doubles.aws.telemetry import S3, CloudWatch, Scaling
from tests.doubles.aws.wire import Fault

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "example",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_TARGETS = {
    "SageMaker": "sagemaker",
    "AnyScaleFrontendService": "application-autoscaling",
    "GraniteServiceVersion20100801": "cloudwatch",
}
_INVOKE = re.compile(r"/endpoints/([^/]+)/invocations")


class Cloud:
    """The region. `behave` says what a version answers, `broken` which ones never start.

    Seconds of the cloud's clock: `start_s` until a new endpoint serves, `update_s` until another
    configuration does, `weights_s` until weights hold; `metrics_delay_s` and `capture_delay_s` are how late
    metrics and captures appear.
    """

    def __init__(self, clock: Callable[[], float] = time.time, *, really_waits: bool = True) -> None:
        self.clock = clock
        self.start_s = self.update_s = 0.3
        self.weights_s = 0.1
        self.metrics_delay_s = 0.0
        self.capture_delay_s = 0.0
        self.broken: set[str] = set()
        self.no_capacity: set[str] = set()
        self.silent_rollback = False
        self.weights_fail = ""
        self.calls: list[str] = []
        self.faults: list[Callable[[str], Fault | None]] = []
        self.sagemaker = SageMaker(self)
        self.cloudwatch = CloudWatch(self)
        self.scaling = Scaling(self)
        self.s3 = S3(self)
        self._behaviours: dict[str, Behaviour] = {}
        self._really_waits = really_waits
        self._random = random.Random(5)
        self._late: list[tuple[float, str, str, bytes]] = []
        self._lock = threading.RLock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point boto3 here."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_address[1]}"}

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def behave(self, version: str, behaviour: Behaviour) -> None:
        """Say what a version answers from now on."""
        self._behaviours[version] = behaviour

    def fail(self, operation: str, fault: Fault, *, times: int = 1) -> None:
        """Let the next calls of an operation ("*": of any) fail, with nothing done."""
        left = [times]

        def decide(called: str) -> Fault | None:
            if left[0] > 0 and operation in ("*", called):
                left[0] -= 1
                return fault
            return None

        self.faults.append(decide)

    def fail_while(self, condition: Callable[[], bool], fault: Fault) -> None:
        """Let every call fail as long as the condition holds."""
        self.faults.append(lambda _: fault if condition() else None)

    # -- the data plane ------------------------------------------------------------------------------

    def invoke(
        self, endpoint: str, body: bytes, *, target: str = "", inference_id: str = ""
    ) -> tuple[str, Reply]:
        """One request: the variant that answered, and its reply."""
        with self._lock:
            self.sagemaker.settle()
            found = self.sagemaker.running(endpoint)
            if target and target not in found.variants:
                raise Fault("ValidationError", f"Variant {target} not found for endpoint {endpoint}.")
            names = list(found.variants)
            weights = [found.variants[name].weight for name in names]
            variant = target or self._random.choices(names, weights)[0]
            version = self.sagemaker.version_of(found.variants[variant].spec)
        reply = self._behaviours.get(version, answers_ok)(body)
        with self._lock:
            self.cloudwatch.note(endpoint, variant, reply.status, reply.elapsed_ms)
            self._capture(endpoint, found.configuration, variant, body, reply, inference_id)
        if self._really_waits:
            time.sleep(reply.elapsed_ms / 1000)
        return variant, reply

    def _capture(
        self, endpoint: str, configuration: str, variant: str, body: bytes, reply: Reply, inference_id: str
    ) -> None:
        capture = self.sagemaker.configurations[configuration].get("DataCaptureConfig")
        if capture is None or self._random.random() * 100 >= capture["InitialSamplingPercentage"]:
            return
        now = self.clock()
        data = {"endpointInput": _captured(body, "INPUT")}
        if reply.status == 200:
            data["endpointOutput"] = _captured(reply.body, "OUTPUT")
        about = {
            "eventId": str(uuid.uuid4()),
            "inferenceTime": f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        if inference_id:
            about["inferenceId"] = inference_id
        line = json.dumps({"captureData": data, "eventMetadata": about, "eventVersion": "0"}).encode() + b"\n"
        bucket, _, prefix = capture["DestinationS3Uri"].removeprefix("s3://").partition("/")
        name = f"{datetime.fromtimestamp(now, UTC):%Y/%m/%d/%H/%M-%S}-000-{variant}.jsonl"
        self._late.append((now + self.capture_delay_s, bucket, f"{prefix}/{endpoint}/{variant}/{name}", line))

    def settle(self) -> None:
        """Let everything that is due by now happen."""
        self.sagemaker.settle()
        due = [one for one in self._late if one[0] <= self.clock()]
        if due:
            self._late = [one for one in self._late if one[0] > self.clock()]
            for _, bucket, key, line in due:
                before = self.s3.objects.get(bucket, {}).get(key, b"")
                self.s3.objects.setdefault(bucket, {})[key] = before + line

    # -- the control plane ---------------------------------------------------------------------------

    def call(self, service: str, operation: str, body: bytes) -> bytes:
        """One call of a modelled operation: its answer's body."""
        model = wire.service(service).operation_model(operation)
        asked = wire.from_json(model, body)
        with self._lock:
            self.settle()
            handler = {"sagemaker": self.sagemaker, "cloudwatch": self.cloudwatch}.get(service, self.scaling)
            answer = getattr(handler, xform_name(operation))(asked)
            return wire.to_json(model, answer)

    def refuse(self, operation: str) -> None:
        """Raise what a fault wants of this call; every call is noted."""
        with self._lock:
            self.calls.append(operation)
            for decide in self.faults:
                fault = decide(operation)
                if fault is not None:
                    raise fault


def _captured(data: bytes, mode: str) -> dict[str, str]:
    try:
        json.loads(data)
        text, encoding = data.decode(), "JSON"
    except ValueError:
        text, encoding = base64.b64encode(data).decode(), "BASE64"
    return {"observedContentType": "application/json", "mode": mode, "data": text, "encoding": encoding}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _handle(self) -> None:
        path = urllib.parse.urlsplit(self.path)
        body = self._body()
        target = self.headers.get("X-Amz-Target", "")
        try:
            if target:
                prefix, _, operation = target.partition(".")
                self._modelled(_TARGETS[prefix], operation, body)
            elif invoke := _INVOKE.fullmatch(path.path):
                self._invoke(invoke[1], body)
            else:
                self._s3(path.path, dict(urllib.parse.parse_qsl(path.query)), body)
        except Exception as error:
            fault = error if isinstance(error, Fault) else Fault("DoubleIsBroken", repr(error), 418)
            self._fault(fault, is_s3=not target and not _INVOKE.fullmatch(path.path))

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _modelled(self, service: str, operation: str, body: bytes) -> None:
        self.server.cloud.refuse(operation)
        answer = self.server.cloud.call(service, operation, body)
        self._send(200, answer, {"Content-Type": "application/x-amz-json-1.1"})

    def _invoke(self, endpoint: str, body: bytes) -> None:
        self.server.cloud.refuse("InvokeEndpoint")
        model = wire.service("sagemaker-runtime").operation_model("InvokeEndpoint")
        asked = wire.from_rest(model, {"EndpointName": urllib.parse.unquote(endpoint)}, self.headers, body)
        variant, reply = self.server.cloud.invoke(
            asked["EndpointName"],
            body,
            target=asked.get("TargetVariant", ""),
            inference_id=asked.get("InferenceId", ""),
        )
        if reply.status != 200:
            fault = Fault(
                "ModelError",
                f"Received client error ({reply.status}) from {variant}.",
                424,
                OriginalStatusCode=reply.status,
                OriginalMessage=reply.body.decode("latin-1"),
            )
            wire.check_error("sagemaker-runtime", fault)
            raise fault
        answer = {
            "Body": reply.body,
            "ContentType": "application/json",
            "InvokedProductionVariant": variant,
        }
        headers, content = wire.to_rest(model, answer)
        self._send(200, content, headers)

    def _s3(self, path: str, query: dict[str, str], body: bytes) -> None:
        cloud = self.server.cloud
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        if self.command == "PUT":
            cloud.refuse("PutObject")
            cloud.s3.put(bucket, key, body)
            self._send(200, b"", {"ETag": '"0"'})
        elif query.get("list-type") == "2":
            cloud.refuse("ListObjectsV2")
            cloud.settle()
            after = query.get("continuation-token") or query.get("start-after", "")
            page = cloud.s3.listing(bucket, query.get("prefix", ""), after, int(query.get("max-keys", 1000)))
            model = wire.service("s3").operation_model("ListObjectsV2")
            wire.check_xml(ElementTree.fromstring(page), model.output_shape)
            self._send(200, page, {"Content-Type": "application/xml"})
        else:
            cloud.refuse("GetObject")
            self._send(200, cloud.s3.get(bucket, key), {"ETag": '"0"'})

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "") or "aws-chunked" in self.headers.get(
            "Content-Encoding", ""
        ):
            return self._chunks()
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> bytes:
        """aws-chunked within a plain or chunked body: sizes in hexadecimal, then trailers."""
        length = self.headers.get("Content-Length")
        raw = self.rfile.read(int(length)) if length else self._plain_chunks()
        found = b""
        while raw:
            head, _, raw = raw.partition(b"\r\n")
            size = int(head.split(b";")[0] or b"0", 16)
            if size == 0:
                break
            found, raw = found + raw[:size], raw[size + 2 :]
        return found

    def _plain_chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _fault(self, fault: Fault, *, is_s3: bool) -> None:
        if is_s3:
            text = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>".encode()
            self._send(fault.status, text, {"Content-Type": "application/xml"})
            return
        body = json.dumps(
            {"__type": fault.code, "message": fault.message, "Message": fault.message, **fault.more}
        )
        headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-errortype": fault.code}
        self._send(fault.status, body.encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
