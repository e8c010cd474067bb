"""The double of AWS says nothing that AWS cannot say, and takes nothing that AWS does not take."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from botocore import xform_name

from tests.doubles.aws import wire
from tests.doubles.aws.cloud import Cloud
from tests.doubles.aws.sagemaker import SageMaker
from tests.doubles.aws.telemetry import CloudWatch, Scaling
from tests.doubles.aws.wire import Fault

SERVICES = {"sagemaker": SageMaker, "cloudwatch": CloudWatch, "application-autoscaling": Scaling}
TARGETS = {"sagemaker": "SageMaker", "cloudwatch": "GraniteServiceVersion20100801"}


def operations() -> list[tuple[str, str]]:
    """Every operation that the double answers: a method that takes what was asked."""
    found: list[tuple[str, str]] = []
    for service, kind in SERVICES.items():
        names = {xform_name(name): name for name in wire.service(service).operation_names}
        found += [
            (service, names[method])
            for method, function in inspect.getmembers(kind, inspect.isfunction)
            if list(inspect.signature(function).parameters) == ["self", "asked"]
        ]
    return found


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    made = Cloud()
    yield made
    made.close()


def ask(cloud: Cloud, service: str, operation: str, body: dict[str, Any]) -> httpx.Response:
    """A request past boto3, which would refuse it before it is sent."""
    return httpx.post(
        cloud.environment["AWS_ENDPOINT_URL"],
        content=json.dumps(body),
        headers={"X-Amz-Target": f"{TARGETS[service]}.{operation}"},
        trust_env=False,
    )


def test_the_double_knows_what_the_adapter_calls() -> None:
    """With `InvokeEndpoint` and S3's three, these are the actions of docs/sagemaker.md."""
    assert len(operations()) == 18


@pytest.mark.parametrize(("service", "operation"), operations())
def test_an_answer_with_a_field_of_its_own_does_not_leave(service: str, operation: str) -> None:
    model = wire.service(service).operation_model(operation)
    with pytest.raises((Fault, AssertionError), match=r"Invented|answers nothing"):
        wire.to_json(model, {"Invented": 1})


@pytest.mark.parametrize(
    ("operation", "body", "words"),
    [
        ("CreateModel", {"ExecutionRoleArn": "arn:aws:iam::123456789012:role/x"}, "lacks .*ModelName"),
        ("DescribeEndpoint", {"EndpointName": "flights", "Verbose": True}, "unknown members .*Verbose"),
        ("DescribeEndpoint", {"EndpointName": "no_underscores"}, "does not match"),
        (
            "UpdateEndpointWeightsAndCapacities",
            {
                "EndpointName": "f",
                "DesiredWeightsAndCapacities": [{"VariantName": "a", "DesiredWeight": "1"}],
            },
            "is no float",
        ),
        (
            "UpdateEndpointWeightsAndCapacities",
            {"EndpointName": "f", "DesiredWeightsAndCapacities": [{"VariantName": "a", "DesiredWeight": -1}]},
            "is less than 0",
        ),
        (
            "CreateEndpointConfig",
            {
                "EndpointConfigName": "c",
                "ProductionVariants": [
                    {"VariantName": "a", "ModelName": "m", "InstanceType": "ml.invented.large"}
                ],
            },
            "is not one of",
        ),
    ],
)
def test_what_the_model_does_not_allow_is_refused(
    cloud: Cloud, operation: str, body: dict[str, Any], words: str
) -> None:
    reply = ask(cloud, "sagemaker", operation, body)
    assert (reply.status_code, reply.json()["__type"]) == (400, "ValidationException")
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reply.json()["message"])


def test_a_direct_call_is_of_the_runtimes_shapes(cloud: Cloud) -> None:
    model = wire.service("sagemaker-runtime").operation_model("InvokeEndpoint")
    headers, body = wire.to_rest(model, {"Body": b"{}", "InvokedProductionVariant": "blue-v1"})
    assert (headers, body) == ({"x-Amzn-Invoked-Production-Variant": "blue-v1"}, b"{}")
    with pytest.raises(Fault, match="Invented"):
        wire.to_rest(model, {"Body": b"{}", "Invented": 1})
    url = f"{cloud.environment['AWS_ENDPOINT_URL']}/endpoints/flights/invocations"
    for header, value in (
        ("X-Amzn-SageMaker-Invented", "1"),
        ("X-Amzn-SageMaker-Target-Variant", "no_underscores"),
    ):
        reply = httpx.post(url, content=b"{}", headers={header: value}, trust_env=False)
        assert (reply.status_code, reply.json()["__type"]) == (400, "ValidationException")


def test_an_error_says_what_its_shape_has() -> None:
    wire.check_error("sagemaker-runtime", Fault("ModelError", "no", OriginalStatusCode=500))
    with pytest.raises(AssertionError, match="Invented"):
        wire.check_error("sagemaker-runtime", Fault("ModelError", "no", Invented=1))


def test_a_listing_is_of_s3s_shape(cloud: Cloud) -> None:
    shape = wire.service("s3").operation_model("ListObjectsV2").output_shape
    for number in range(3):
        cloud.s3.put("models", f"a/{number}", b"x")
    page = cloud.s3.listing("models", "a/", "", 2)
    wire.check_xml(ElementTree.fromstring(page), shape)
    with pytest.raises(Fault, match="Invented is no member"):
        wire.check_xml(ElementTree.fromstring(page.replace(b"Size>", b"Invented>")), shape)
