from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from serving.endpoint import Endpoint, Route, Slot
from serving.fake import FakeMetered
from tests.doubles.aws.cloud import Cloud
from tests.serving.contract.platforms import FakePlatform, LocalPlatform, Platform, SageMakerPlatform
from tests.serving.contract.routes import first, uri
from tests.serving.gateway.lab import Lab, lab_settings


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "metered",
        pytest.param("sagemaker", marks=pytest.mark.slow),
        pytest.param("vertex", marks=pytest.mark.slow),
        pytest.param("local", marks=pytest.mark.slow),
    ],
)
def platform(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    if request.param == "fake":
        yield FakePlatform()
        return
    if request.param == "metered":
        yield FakePlatform(FakeMetered)
        return
    if request.param == "sagemaker":
        cloud = Cloud()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cloud.environment.items():
                patch.setenv(name, value)
            yield SageMakerPlatform(cloud, tmp_path_factory.mktemp("sagemaker"))
        cloud.close()
        return
    if request.param == "vertex":
        from tests.serving.contract.vertex import VertexPlatform

        with VertexPlatform(tmp_path_factory.mktemp("vertex")) as vertex:
            yield vertex
        return
    lab = Lab(lab_settings(tmp_path_factory.mktemp("contract")))
    try:
        lab.up()
        yield LocalPlatform(lab)
    finally:
        lab.down()


@pytest.fixture
def fresh(platform: Platform) -> Iterator[Endpoint]:
    """It has never served."""
    endpoint = platform.endpoint()
    yield endpoint
    platform.dispose(endpoint)


@pytest.fixture
def serving(fresh: Endpoint) -> Endpoint:
    """Version 1 serves from blue, generation 1."""
    fresh.deploy(Slot.BLUE, "1", uri=uri("1"))
    fresh.apply(first(fresh))
    return fresh


@pytest.fixture
def canary(serving: Endpoint) -> tuple[Endpoint, Route]:
    """And version 2 waits in green, under generation 2, without a share."""
    serving.deploy(Slot.GREEN, "2", uri=uri("2"))
    route = dataclasses.replace(first(serving, 2), other_version="2")
    serving.apply(route)
    return serving, route
